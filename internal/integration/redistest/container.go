package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	mobycontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// ownerLabel on a container names the process that started it, as host/pid.
const ownerLabel = "redispatterns.redistest.owner"

// docker is the Docker daemon.
type docker struct {
	client *testcontainers.DockerClient
	arch   string

	pullMu      sync.Mutex
	registryErr error // why no image can be pulled in this run
}

// openDocker fails where no Docker daemon answers.
func openDocker() (*docker, error) {
	// Our containers end by themselves (see idle) and the next run removes leftovers, so the reaper container, whose image
	// many machines cannot pull, is not needed. A user who wants it sets the variable to false.
	if _, ok := os.LookupEnv("TESTCONTAINERS_RYUK_DISABLED"); !ok {
		if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
			return nil, err
		}
	}
	tclog.SetDefault(tclog.NewNoopLogger())

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, err
	}
	version, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	d := &docker{client: c, arch: version.Arch}
	d.removeLeftovers(ctx)
	return d, c.Close() // which closes idle connections: the client stays usable
}

// removeLeftovers removes the containers of runs that were killed before they could. It does what it can.
func (d *docker) removeLeftovers(ctx context.Context) {
	list, err := d.client.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: client.Filters{}.Add("label", ownerLabel),
	})
	if err != nil {
		return
	}
	here, _ := os.Hostname()
	for _, c := range list.Items {
		hostname, pid, _ := strings.Cut(c.Labels[ownerLabel], "/")
		n, err := strconv.Atoi(pid)
		if err != nil || hostname != here || !errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			continue
		}
		_, _ = d.client.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	}
}

// container holds the server processes of one Server, Cluster or Sentinel.
type container struct {
	c *testcontainers.DockerContainer
}

const (
	// idle is the container's first process. It is not a server, so that servers can be killed and started again while the
	// container keeps its ports and files; it waits for the orphans that start leaves, and ends after an hour in case
	// nobody is left to remove the container.
	idle = `sleep 3600 & wait $!`

	// launch DIR CONFIG ARGS... starts a server in the background.
	launch = `set -e
mkdir -p "$1"; cd "$1"; config=$2; shift 2
if [ -n "$config" ] && ! [ -e node.conf ]; then printf '%s' "$config" >node.conf; fi
server=$(command -v redis-server || command -v valkey-server)
sh -c 'echo $$ >pid; exec "$@"' sh "$server" "$@" >>log 2>&1 </dev/null &`

	// send DIR SIGNAL sends a signal; a killed process is waited for.
	send = `pid=$(cat "$1/pid")
kill -0 "$pid" 2>/dev/null || { [ "$2" = KILL ] && exit 0; echo "server is not running"; exit 1; }
kill -"$2" "$pid" || exit 1
[ "$2" = KILL ] || exit 0
n=0
while kill -0 "$pid" 2>/dev/null; do n=$((n+1)); [ $n -lt 1000 ] || { echo "survives SIGKILL"; exit 1; }; sleep 0.01; done`
)

func (d *docker) newContainer(ctx context.Context, kind Kind, ports []int) (host, error) {
	image, err := d.image(kind)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	exposed := make([]string, len(ports))
	bindings := network.PortMap{}
	for i, p := range ports {
		exposed[i] = strconv.Itoa(p) + "/tcp"
		bindings[network.MustParsePort(exposed[i])] = []network.PortBinding{
			{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: strconv.Itoa(p)},
		}
	}
	c, err := testcontainers.Run(ctx, image,
		testcontainers.WithEntrypoint("sh", "-c", idle),
		testcontainers.WithExposedPorts(exposed...),
		testcontainers.WithLabels(map[string]string{ownerLabel: hostname + "/" + strconv.Itoa(os.Getpid())}),
		testcontainers.WithHostConfigModifier(func(hc *mobycontainer.HostConfig) {
			hc.PortBindings = bindings
			hc.AutoRemove = true
		}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("container of %s: %w", image, err), testcontainers.TerminateContainer(c))
	}
	return &container{c}, nil
}

func (c *container) exec(ctx context.Context, script string, args ...string) (string, error) {
	code, out, err := c.c.Exec(ctx, append([]string{"sh", "-c", script, "sh"}, args...), tcexec.Multiplexed())
	if err != nil {
		return "", fmt.Errorf("docker exec: %w", err)
	}
	text, err := io.ReadAll(out)
	if err == nil && code != 0 {
		err = fmt.Errorf("in container: exit code %d: %s", code, strings.TrimSpace(string(text)))
	}
	return string(text), err
}

func (c *container) dir(n *node) string { return "/redistest/" + strconv.Itoa(n.port) }

func (c *container) start(ctx context.Context, n *node) error {
	_, err := c.exec(ctx, launch, append([]string{c.dir(n), n.config}, n.command("0.0.0.0")...)...)
	if err == nil {
		// For its side effect: it closes idle connections to the daemon, whose goroutines the leak check would find.
		_, err = c.c.Inspect(ctx)
	}
	return err
}

func (c *container) signal(ctx context.Context, n *node, name string) error {
	_, err := c.exec(ctx, send, c.dir(n), name)
	return err
}

func (c *container) alive(ctx context.Context, n *node) bool {
	_, err := c.exec(ctx, `kill -0 "$(cat "$1/pid")"`, c.dir(n))
	return err == nil
}

func (c *container) log(ctx context.Context, n *node) string {
	text, err := c.exec(context.WithoutCancel(ctx), `tail -n 20 "$1/log"`, c.dir(n))
	if err != nil {
		return err.Error()
	}
	return text
}

func (c *container) close() {
	ctx, cancel := startContext()
	defer cancel()
	// AutoRemove may be quicker than Terminate, which then reports that the container is gone: TerminateContainer knows.
	if err := testcontainers.TerminateContainer(c.c, testcontainers.StopTimeout(0), testcontainers.StopContext(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "redistest: container stays:", err)
	}
}

// directAddr is the container's own address, if this machine reaches it: on Linux it does, on a virtual machine it does not.
func (c *container) directAddr(n *node) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	ip, err := c.c.ContainerIP(ctx)
	if err != nil || ip == "" {
		return ""
	}
	addr := net.JoinHostPort(ip, strconv.Itoa(n.port))
	if reply, err := call(ctx, addr, "PING"); err != nil || reply != "PONG" {
		return ""
	}
	return addr
}
