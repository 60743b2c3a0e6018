package limit

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/plusone-dev/plusone/internal/testproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(patient{m}) }

// patient waits after the tests for what ends by itself: rueidis' client of a cluster takes 5 s to close connections that
// it has replaced. What does not is found as ever.
type patient struct{ *testing.M }

func (p patient) Run() int {
	code := p.M.Run()
	testproc.Poll(10*time.Second, 100*time.Millisecond, func() bool { return goleak.Find() == nil })
	return code
}
