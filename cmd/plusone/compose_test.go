package main_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
)

// composeFile is what the tests look at of compose.yaml.
type composeFile struct {
	Services map[string]composeService
}

type composeService struct {
	Image           string
	Command         []string
	Environment     map[string]string
	Ports           []string
	Volumes, Tmpfs  []string
	Healthcheck     struct{ Test []string }
	StopGracePeriod string `yaml:"stop_grace_period"`
	MemLimit        string `yaml:"mem_limit"`
}

// compose is deploy/compose.yaml where the environment sets nothing.
func compose(t *testing.T) map[string]composeService {
	t.Helper()
	variable := regexp.MustCompile(`\$\{[A-Z_]+:-([^}]*)\}`)
	services := documents[composeFile](t, "compose.yaml")[0].Services
	for name, s := range services {
		for key, value := range s.Environment {
			s.Environment[key] = variable.ReplaceAllString(value, "$1")
		}
		for i, arg := range s.Command {
			s.Command[i] = variable.ReplaceAllString(arg, "$1")
		}
		services[name] = s
	}
	if len(services) == 0 {
		t.Fatal("compose.yaml has no services")
	}
	return services
}

func servers(services map[string]composeService) []string {
	var names []string
	for name := range services {
		if strings.HasPrefix(name, "plusone-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What compose.yaml refers to is there, nothing is reached from outside, versions are pinned, each service has a health check for
// up --wait, and servers get the time to stop.
func TestComposeFile(t *testing.T) {
	t.Parallel()
	services := compose(t)
	for name, s := range services {
		if !regexp.MustCompile(`^plusone:local$|:v?\d+\.\d+`).MatchString(s.Image) {
			t.Errorf("%s runs %s, which is no fixed version", name, s.Image)
		}
		if len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s has no health check: --wait takes it for ready while it ends again and again", name)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s is reached from outside by %s", name, port)
			}
		}
		for _, volume := range s.Volumes {
			if source, _, _ := strings.Cut(volume, ":"); source[0] == '.' {
				if _, err := os.Stat(filepath.Join(deployDir, source)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	var targets []string
	for _, name := range servers(services) {
		s := services[name]
		targets = append(targets, name+s.Environment["PLUSONE_HTTP_ADDR"])
		checkMemory(t, s.Environment["GOMEMLIMIT"], s.MemLimit)
		if !slices.Equal(s.Tmpfs, []string{"/data"}) {
			t.Errorf("%s leaves the volume of its image behind", name)
		}
		grace, err := time.ParseDuration(s.StopGracePeriod)
		must(t, err)
		if limit := duration(t, "--shutdown-timeout", s.Environment); grace <= limit {
			t.Errorf("%s is killed after %v, and a stop may take %v", name, grace, limit)
		}
		if !slices.Equal(s.Healthcheck.Test, []string{"CMD", "/plusone", "health"}) {
			t.Errorf("the health of %s is asked by %q", name, s.Healthcheck.Test)
		}
	}
	type prometheus struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	config := documents[prometheus](t, "prometheus/prometheus.yml")[0]
	if scrape := config.ScrapeConfigs[0]; scrape.JobName != "plusone" || !slices.Equal(scrape.StaticConfigs[0].Targets, targets) {
		t.Errorf("Prometheus scrapes %+v, and the servers are %q", scrape, targets)
	}
	for _, file := range config.RuleFiles {
		if _, err := os.Stat(filepath.Join(deployDir, "prometheus", file)); err != nil {
			t.Error(err)
		}
	}
}

// The servers of compose.yaml serve with its settings, on a Redis and a database that have its settings too. Only hosts and
// ports are others.
func TestComposeServes(t *testing.T) {
	t.Parallel()
	services := compose(t)
	redis := startComposeRedis(t, services["redis"])
	database, err := url.Parse(pgtest.NewDatabase(t))
	must(t, err)

	var instances []*plusonetest.Instance
	for _, name := range servers(services) {
		var env []string
		for key, value := range services[name].Environment {
			if key == "PLUSONE_POSTGRES_URL" || key == "PLUSONE_REDIS_URL" {
				u, err := url.Parse(value)
				must(t, err)
				if u.Host = redis.Addr; u.Scheme == "postgres" {
					u.Host, u.Path = database.Host, database.Path
				}
				value = u.String()
			}
			env = append(env, key+"="+value)
		}
		s := plusonetest.LaunchWith(t, binary, env, "serve", "--grpc-addr=127.0.0.1:0")
		s.WaitReady()
		instances = append(instances, s)
	}
	if len(instances) != 2 {
		t.Fatalf("compose.yaml has %d servers", len(instances))
	}

	for i, s := range instances {
		receipt, err := dial(t, s).Increment(context.Background(), "views/a", 2)
		must(t, err)
		if got := count(t, dial(t, instances[1-i]), "views/a"); got != int64(2*(i+1)) {
			t.Errorf("the other server counts %d, %v", got, receipt)
		}
		if code, body := s.Page("/healthz"); code != 200 || body != "ok sharded\n" {
			t.Errorf("/healthz: %d %q", code, body)
		}
		if output, code := execute(t, nil, "health", "--http-addr="+s.HTTPAddr); code != 0 {
			t.Errorf("health exits %d: %s", code, output)
		}
	}
	for _, s := range instances {
		s.Terminate()
		// Such as that Redis may lose what it acknowledged.
		if strings.Contains(string(s.Output()), `"level":"WARN"`) {
			t.Errorf("it warns:\n%s", s.Output())
		}
	}
}

// startComposeRedis starts Redis with the command line of compose.yaml. The password comes last, since the tests' own look at
// the server needs none.
func startComposeRedis(t *testing.T, s composeService) *redistest.Server {
	t.Helper()
	var options []redistest.Option
	password := ""
	for i := 1; i+1 < len(s.Command); i += 2 {
		name, ok := strings.CutPrefix(s.Command[i], "--")
		if !ok {
			t.Fatalf("%q is no directive of Redis", s.Command[i])
		}
		if name == "requirepass" {
			password = s.Command[i+1]
			continue
		}
		options = append(options, redistest.Config(name, s.Command[i+1]))
	}
	if s.Command[0] != "redis-server" || password == "" {
		t.Fatalf("Redis is started as %q", s.Command)
	}
	server := redistest.Start(t, options...)
	server.Do("CONFIG", "SET", "requirepass", password)
	return server
}
