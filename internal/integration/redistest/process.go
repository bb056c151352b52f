package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// processes are servers as children of this process.
type processes struct {
	binary, dir string

	mu      sync.Mutex
	running map[*node]*process
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

func newProcesses(binary string) (*processes, error) {
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	return &processes{binary: binary, dir: dir, running: map[*node]*process{}}, nil
}

func (p *processes) nodeDir(n *node) string { return filepath.Join(p.dir, strconv.Itoa(n.port)) }

func (p *processes) start(_ context.Context, n *node) error {
	dir := p.nodeDir(n)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if conf := filepath.Join(dir, "node.conf"); n.config != "" {
		if _, err := os.Stat(conf); errors.Is(err, os.ErrNotExist) {
			if err := os.WriteFile(conf, []byte(n.config), 0o644); err != nil {
				return err
			}
		}
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the child has its own
	cmd := exec.Command(p.binary, n.command("127.0.0.1")...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = childAttr()
	if err := cmd.Start(); err != nil {
		return err
	}
	child := &process{cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(child.done)
	}()
	p.mu.Lock()
	p.running[n] = child
	p.mu.Unlock()
	return nil
}

func (p *processes) child(n *node) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running[n]
}

func (p *processes) signal(ctx context.Context, n *node, name string) error {
	sig := map[string]syscall.Signal{"KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}[name]
	child := p.child(n)
	if err := child.cmd.Process.Signal(sig); err != nil {
		if errors.Is(err, os.ErrProcessDone) && name == "KILL" {
			return nil
		}
		return fmt.Errorf("SIG%s: %w", name, err)
	}
	if name != "KILL" {
		return nil
	}
	select {
	case <-child.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("survives SIGKILL: %w", ctx.Err())
	}
}

func (p *processes) alive(_ context.Context, n *node) bool {
	select {
	case <-p.child(n).done:
		return false
	default:
		return true
	}
}

func (p *processes) log(_ context.Context, n *node) string {
	text, err := os.ReadFile(filepath.Join(p.nodeDir(n), "log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

func (p *processes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, child := range p.running {
		_ = child.cmd.Process.Kill() // ended already is as good
		<-child.done
	}
	_ = os.RemoveAll(p.dir)
}
