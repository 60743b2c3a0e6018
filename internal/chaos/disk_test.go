package chaos_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// smallDisk mounts a disk of its own, which is gone with the test process.
func (d *deployment) smallDisk(options string) string {
	d.t.Helper()
	dir := testproc.TempDir(d.t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		d.t.Fatalf("mount a small disk, which takes root: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		// After the servers on it; what is still open there goes with its process.
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			d.t.Error(err)
		}
	})
	d.disk = dir
	return dir
}

func (d *deployment) embeddedOnSmallDisk() { d.embeddedIn(d.smallDisk("size=64m")) }

func (d *deployment) directOnSmallDisk() { d.directOn(pgtest.StartIn(d.t, d.smallDisk("size=400m"))) }

func (d *deployment) shardedOnSmallDisk() { d.shardedOn(pgtest.StartIn(d.t, d.smallDisk("size=400m"))) }

var diskFaults = []fault{
	plain("disk full", func(d *deployment) {
		filler := filepath.Join(d.disk, "filler")
		file, err := os.Create(filler)
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			d.t.Fatal(err)
		}
		chunk := make([]byte, 1<<20)
		deadline := time.Now().Add(time.Second + time.Duration(d.rand.Int64N(int64(2*time.Second))))
		for time.Now().Before(deadline) { // whatever is freed meanwhile
			if _, err := file.Write(chunk); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					d.t.Fatal(err)
				}
				d.during(time.Millisecond, 20*time.Millisecond)
			}
		}
		if err := errors.Join(file.Close(), os.Remove(filler)); err != nil {
			d.t.Fatal(err)
		}
		if d.postgres != nil && d.postgres.Exited() {
			d.postgres.Restart() // it ends when it cannot write its log
		}
	}),
}
