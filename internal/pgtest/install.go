package pgtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/testproc"
)

// superuser is the database role that all URLs name.
const superuser = "plusone"

// initdbArgs are all arguments of initdb but the folder. Servers trust every local connection.
var initdbArgs = []string{"--username=" + superuser, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"}

// installation is how this machine runs PostgreSQL.
type installation struct {
	// bin is the folder of the server's programs.
	bin string
	// credential is the user to run servers as, nil for that of the test.
	credential *syscall.Credential
	// template is a data folder fresh from initdb.
	template string
}

// findInstallation does its work once per test process.
var findInstallation = sync.OnceValues(func() (installation, error) {
	bin, err := findBinaries()
	if err != nil {
		return installation{}, err
	}
	credential, err := serverUser()
	if err != nil {
		return installation{}, err
	}
	inst := installation{bin: bin, credential: credential}
	if inst.template, err = inst.makeTemplate(); err != nil {
		return installation{}, fmt.Errorf("make a PostgreSQL data folder: %w", err)
	}
	return inst, nil
})

// findBinaries prefers the server on the PATH, and otherwise takes the newest one that Debian installed,
// which keeps them off it.
func findBinaries() (string, error) {
	candidates, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	slices.SortFunc(candidates, func(a, b string) int { return debianVersion(b) - debianVersion(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		candidates = slices.Insert(candidates, 0, path)
	}
	for _, path := range candidates {
		// initdb is beside the server, not beside a link to it.
		path, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue
		}
		bin := filepath.Dir(path)
		if _, err := os.Stat(filepath.Join(bin, "initdb")); err == nil {
			return bin, nil
		}
	}
	return "", errors.New("the PostgreSQL server (postgres, initdb) is neither on the PATH nor in /usr/lib/postgresql, " +
		"and this test needs a real one: run tools/install-servers.sh (Debian), or install PostgreSQL 14 or later")
}

// debianVersion is the major version in /usr/lib/postgresql/<version>/bin/postgres.
func debianVersion(path string) int {
	version, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	if err != nil {
		return 0
	}
	return version
}

// serverUser is another user if the test runs as root, as whom PostgreSQL refuses to run.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var lookupErrs error
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			lookupErrs = errors.Join(lookupErrs, err)
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(uidErr, gidErr)
	}
	return nil, fmt.Errorf("PostgreSQL refuses to run as root, and there is no other user: %w", lookupErrs)
}

// makeTemplate runs initdb, which takes a second, once per machine and PostgreSQL version. Test processes
// that need it at the same time wait for the first one.
func (inst installation) makeTemplate() (_ string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "plusone", "pgtest")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	lock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	name, err := inst.templateName()
	if err != nil {
		return "", err
	}
	template := filepath.Join(cache, name)
	if _, err := os.Stat(template); err == nil {
		return template, nil
	}
	// The server's user may write to the process's folder, but perhaps not even see the cache.
	dir, err := testproc.ProcessDir()
	if err != nil {
		return "", err
	}
	if err := inst.own(dir); err != nil {
		return "", err
	}
	fresh := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(inst.bin, "initdb"), append([]string{"--pgdata=" + fresh}, initdbArgs...)...)
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: inst.credential}
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, testproc.Indent(string(out)))
	}
	// A copy that was cut short must not be taken for a template.
	partial := template + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	if err := (installation{}).copyData(fresh, partial); err != nil {
		return "", err
	}
	return template, errors.Join(os.RemoveAll(dir), os.Rename(partial, template))
}

// templateName is different for every build of PostgreSQL and every way to call initdb.
func (inst installation) templateName() (string, error) {
	binary := filepath.Join(inst.bin, "postgres")
	info, err := os.Stat(binary)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %s %q",
		binary, info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano), initdbArgs))
	return hex.EncodeToString(sum[:8]), nil
}

// lockFile waits for the lock that goes with a file. It is released when the file is closed.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, f.Close())
		}
	}
}

// copyData copies a data folder for the server's user.
func (inst installation) copyData(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if entry.IsDir() {
			err = os.Mkdir(target, 0o700)
		} else {
			err = copyFile(path, target)
		}
		if err != nil {
			return err
		}
		return inst.own(target)
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = out.ReadFrom(in)
	return err
}

// own gives a file to the server's user.
func (inst installation) own(path string) error {
	if inst.credential == nil {
		return nil
	}
	return os.Chown(path, int(inst.credential.Uid), int(inst.credential.Gid))
}

// Program is the path of a program that comes with the server, such as pg_dump. It fails the test.
func Program(t testing.TB, name string) string {
	t.Helper()
	inst, err := findInstallation()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(inst.bin, name)
}
