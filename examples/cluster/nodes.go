package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// machine is where nodes run: as processes of redis-server, or in one container.
type machine struct {
	dir       string // of the processes' files
	server    string // the redis-server to run
	container string // or the container's name
	ports     []int
	processes map[int]*exec.Cmd
}

// boot finds a place for so many nodes: redis-server or valkey-server if it is installed, else Docker, with REDIS_IMAGE.
func boot(ctx context.Context, count int) (*machine, error) {
	ports, err := freePorts(count)
	if err != nil {
		return nil, err
	}
	m := &machine{ports: ports, processes: map[int]*exec.Cmd{}}
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			m.server = path
			m.dir, err = os.MkdirTemp("", "cluster")
			return m, err
		}
	}
	image := os.Getenv("REDIS_IMAGE")
	if image == "" {
		image = "redis:8"
	}
	m.container = "example-cluster-" + strconv.Itoa(ports[0])
	args := []string{"run", "--rm", "--detach", "--name", m.container}
	for _, port := range ports { // the same inside, because nodes tell clients the ports of other nodes
		args = append(args, "--publish", fmt.Sprintf("127.0.0.1:%[1]d:%[1]d", port))
	}
	if err := docker(ctx, append(args, image, "sleep", "3600")...); err != nil {
		return nil, fmt.Errorf("no redis-server in PATH, and no container of %s: %w", image, err)
	}
	return m, nil
}

func docker(ctx context.Context, args ...string) error {
	_, err := exec.CommandContext(ctx, "docker", args...).Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		err = errors.New(strings.TrimSpace(string(failed.Stderr)))
	}
	return err
}

// start starts the node of a port.
func (m *machine) start(ctx context.Context, port int) error {
	args := []string{
		"--port", strconv.Itoa(port), "--cluster-enabled", "yes", "--cluster-node-timeout", "3000",
		"--cluster-config-file", fmt.Sprintf("nodes-%d.conf", port), "--cluster-announce-ip", "127.0.0.1",
		// Slots of a primary that is dead are refused, and others served.
		"--cluster-require-full-coverage", "no",
		"--save", "", "--repl-diskless-sync-delay", "0", "--protected-mode", "no",
	}
	if m.container != "" {
		// The shell leaves its process number behind, which is that of the server then.
		script := fmt.Sprintf(`cd /tmp; echo $$ > %d.pid; s=redis-server; command -v $s >/dev/null || s=valkey-server; exec $s "$@"`, port)
		return docker(ctx, append([]string{"exec", "--detach", m.container, "sh", "-c", script, "sh"}, args...)...)
	}
	cmd := exec.Command(m.server, append(args, "--bind", "127.0.0.1", "--dir", m.dir,
		"--logfile", filepath.Join(m.dir, strconv.Itoa(port)+".log"))...)
	m.processes[port] = cmd
	return cmd.Start()
}

// kill kills the node of a port, without a chance to say goodbye.
func (m *machine) kill(ctx context.Context, port int) error {
	if m.container != "" {
		return docker(ctx, "exec", m.container, "sh", "-c", fmt.Sprintf("kill -9 $(cat /tmp/%d.pid)", port))
	}
	return m.processes[port].Process.Kill()
}

// close ends all nodes.
func (m *machine) close() {
	if m.container != "" {
		_ = docker(context.Background(), "rm", "--force", m.container) // it goes with the machine at the latest
		return
	}
	for _, p := range m.processes {
		if p.Process != nil {
			_ = p.Process.Kill()
			_ = p.Wait()
		}
	}
	_ = os.RemoveAll(m.dir)
}

// freePorts returns ports that are free, and whose cluster bus' ports, 10000 above, are free too.
func freePorts(count int) ([]int, error) {
	var ports []int
	for range 1000 {
		port := 20_000 + rand.N(10_000)
		if !isFree(port) || !isFree(port+10_000) {
			continue
		}
		if ports = append(ports, port); len(ports) == count {
			return ports, nil
		}
	}
	return nil, errors.New("no free ports")
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
