package main_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	plusonev1 "github.com/plusone-dev/plusone/api/plusone/v1"
	"github.com/plusone-dev/plusone/internal/certtest"
	"github.com/plusone-dev/plusone/internal/pgtest"
	"github.com/plusone-dev/plusone/internal/plusonetest"
	"github.com/plusone-dev/plusone/internal/redistest"
	"github.com/plusone-dev/plusone/internal/testproc"
)

// manifest is what the test looks at of an object of Kubernetes.
type manifest struct {
	Kind string
	Spec struct {
		Selector map[string]any // labels, or matchLabels with them
		Ports    []struct {
			Port       int
			TargetPort string `yaml:"targetPort"`
		}
		PodSelector map[string]any `yaml:"podSelector"`
		Ingress     []struct {
			Ports []struct{ Port string }
		}
		Template struct {
			Metadata struct{ Labels, Annotations map[string]string }
			Spec     podSpec
		}
	}
}

type podSpec struct {
	TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
	Containers                    []struct {
		Args []string
		Env  []struct {
			Name, Value string
			ValueFrom   struct {
				SecretKeyRef struct{ Key string } `yaml:"secretKeyRef"`
			} `yaml:"valueFrom"`
		}
		Ports []struct {
			Name          string
			ContainerPort int `yaml:"containerPort"`
		}
		LivenessProbe  probe `yaml:"livenessProbe"`
		ReadinessProbe probe `yaml:"readinessProbe"`
		StartupProbe   probe `yaml:"startupProbe"`
		Resources      struct{ Limits struct{ Memory string } }
		VolumeMounts   []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
		} `yaml:"volumeMounts"`
	}
	Volumes []struct{ Name string }
}

type probe struct {
	HTTPGet struct{ Path, Port, Scheme string } `yaml:"httpGet"`
}

// kubernetes are the objects by kind, of which each has one.
func kubernetes(t *testing.T) map[string]manifest {
	t.Helper()
	files, err := filepath.Glob(deployDir + "/kubernetes/*.yaml")
	must(t, err)
	objects := map[string]manifest{}
	for _, file := range files {
		for _, m := range documents[manifest](t, "kubernetes/"+filepath.Base(file)) {
			objects[m.Kind] = m
		}
	}
	for _, kind := range []string{"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} {
		if objects[kind].Kind == "" {
			t.Fatalf("there is no %s", kind)
		}
	}
	if n := len(objects["Deployment"].Spec.Template.Spec.Containers); n != 1 {
		t.Fatalf("pods have %d containers", n)
	}
	return objects
}

// The objects agree with each other and with the program.
func TestKubernetes(t *testing.T) {
	t.Parallel()
	objects := kubernetes(t)
	deployment, service := objects["Deployment"], objects["Service"]
	pod := deployment.Spec.Template.Spec
	labels := fmt.Sprint(deployment.Spec.Template.Metadata.Labels)
	for name, selector := range map[string]any{
		"Deployment": deployment.Spec.Selector["matchLabels"], "Service": service.Spec.Selector,
		"PodDisruptionBudget": objects["PodDisruptionBudget"].Spec.Selector["matchLabels"],
		"NetworkPolicy":       objects["NetworkPolicy"].Spec.PodSelector["matchLabels"],
	} {
		if fmt.Sprint(selector) != labels {
			t.Errorf("%s selects %v, and pods have %v", name, selector, labels)
		}
	}

	c := pod.Containers[0]
	env, mounts := map[string]string{}, map[string]bool{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	for _, m := range c.VolumeMounts {
		mounts[m.MountPath] = slices.ContainsFunc(pod.Volumes, func(v struct{ Name string }) bool { return v.Name == m.Name })
	}
	for name, value := range env {
		if strings.HasPrefix(value, "/") && !mounts[filepath.Dir(value)] {
			t.Errorf("%s=%s is in no volume", name, value)
		}
	}
	checkMemory(t, env["GOMEMLIMIT"], c.Resources.Limits.Memory)
	if limit := duration(t, "--shutdown-timeout", env); time.Duration(pod.TerminationGracePeriodSeconds)*time.Second <= limit {
		t.Errorf("pods are killed after %d s, and a stop may take %v", pod.TerminationGracePeriodSeconds, limit)
	}

	ports := map[string]string{}
	for _, p := range c.Ports {
		ports[p.Name] = strconv.Itoa(p.ContainerPort)
	}
	for name, addr := range map[string]string{"grpc": env["PLUSONE_GRPC_ADDR"], "http": env["PLUSONE_HTTP_ADDR"]} {
		if _, port, err := net.SplitHostPort(addr); err != nil || port != ports[name] {
			t.Errorf("port %s is %s, and plusone listens on %q", name, ports[name], addr)
		}
	}
	for _, p := range service.Spec.Ports {
		if ports[p.TargetPort] != strconv.Itoa(p.Port) {
			t.Errorf("the service leads from %d to %s=%s", p.Port, p.TargetPort, ports[p.TargetPort])
		}
	}
	for _, rule := range objects["NetworkPolicy"].Spec.Ingress {
		if len(rule.Ports) != 1 || ports[rule.Ports[0].Port] == "" {
			t.Errorf("the network policy lets in to %v", rule.Ports)
		}
	}
	scheme := "HTTP"
	if env["PLUSONE_TLS_CERT"] != "" {
		scheme = "HTTPS"
	}
	for _, p := range []probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p.HTTPGet.Path != "/healthz" || p.HTTPGet.Port != "http" || p.HTTPGet.Scheme != scheme {
			t.Errorf("a probe asks %+v", p.HTTPGet)
		}
	}
	notes := deployment.Spec.Template.Metadata.Annotations
	if notes["prometheus.io/port"] != ports["http"] || !strings.EqualFold(notes["prometheus.io/scheme"], scheme) {
		t.Errorf("Prometheus is told %v", notes)
	}
}

// A pod of the Deployment serves with its settings, off loopback, and its probes succeed. Only hosts, ports and where files lie
// are others.
func TestKubernetesServes(t *testing.T) {
	t.Parallel()
	c := kubernetes(t)["Deployment"].Spec.Template.Spec.Containers[0]
	authority := certtest.NewAuthority(t)
	pair := authority.Issue(t, certtest.Leaf{Name: "plusone"})
	output, code := execute(t, nil, "token", "caller", "--namespaces=*")
	token, entry, ok := strings.Cut(output, "\n\n")
	if code != 0 || !ok {
		t.Fatalf("token exits %d: %s", code, output)
	}
	urls := map[string]string{"postgres": pgtest.NewDatabase(t), "redis": redistest.Start(t, redistest.AppendFsyncAlways()).URL()}
	texts := map[string]string{
		"PLUSONE_TLS_CERT": string(pair.Certificate), "PLUSONE_TLS_KEY": string(pair.Key),
		"PLUSONE_TOKENS_FILE": "callers:\n" + entry, "PLUSONE_POLICY_FILE": "namespaces: {views: {max_delta: 10}}\n",
	}
	var env []string
	for _, e := range c.Env {
		value := e.Value
		if key := e.ValueFrom.SecretKeyRef.Key; key != "" {
			value = urls[key]
		} else if strings.HasPrefix(value, "/") {
			value = mount(t, filepath.Base(value), texts[e.Name])
		}
		env = append(env, e.Name+"="+value)
	}
	s := plusonetest.LaunchWith(t, binary, env, slices.Concat(c.Args, []string{"--grpc-addr=:0"})...)
	s.WaitReady()

	// The kubelet does not verify certificates, and has none.
	probe := c.ReadinessProbe.HTTPGet
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(within(t, patience), http.MethodGet, strings.ToLower(probe.Scheme)+"://"+s.HTTPAddr+probe.Path, nil)
	must(t, err)
	resp, err := transport.RoundTrip(req)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the probe is answered %s", resp.Status)
	}
	if output, code := execute(t, env, "health", "--http-addr="+s.HTTPAddr); code != 0 {
		t.Errorf("health exits %d: %s", code, output)
	}

	_, port, err := net.SplitHostPort(s.GRPCAddr)
	must(t, err)
	conn, err := grpc.NewClient("127.0.0.1:"+port, grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: authority.Pool(), ServerName: "plusone"})))
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	counters := plusonev1.NewCounterServiceClient(conn)
	ctx := within(t, patience)
	known := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	for _, test := range []struct {
		ctx   context.Context
		delta int64
		want  codes.Code
	}{
		{known, 10, codes.OK},
		{ctx, 10, codes.Unauthenticated},
		{known, 11, codes.InvalidArgument}, // by the policy
	} {
		_, err := counters.Increment(test.ctx, &plusonev1.IncrementRequest{Key: "views/a", Delta: &test.delta})
		if status.Code(err) != test.want {
			t.Errorf("a change by %d: %v, want %v", test.delta, err, test.want)
		}
	}
	s.Terminate()
}

// mount writes a file in the way of Kubernetes, which replaces all files of a folder at once by changing a link, and returns
// its path.
func mount(t *testing.T, name, text string) string {
	t.Helper()
	dir := testproc.TempDir(t)
	must(t, os.Mkdir(filepath.Join(dir, "..1"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "..1", name), []byte(text), 0o600))
	must(t, os.Symlink("..1", filepath.Join(dir, "..data")))
	must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	return filepath.Join(dir, name)
}
