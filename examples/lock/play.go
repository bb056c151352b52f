package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/lock"
)

// play has the workers, and prints what happens in the order in which it does.
type play struct {
	client  rueidis.Client
	locks   *lock.Locker // to look at those of the workers
	prefix  string
	out     io.Writer
	began   time.Time
	workers map[string]*exec.Cmd
	lines   chan line
	said    []line
}

type line struct{ worker, text string }

func newPlay(client rueidis.Client, out io.Writer) (*play, error) {
	p := &play{
		client: client, prefix: "example-" + rand.Text(), out: out, began: time.Now(), workers: map[string]*exec.Cmd{},
		lines: make(chan line, 100),
	}
	var err error
	p.locks, err = lock.New(client, lock.Options{Prefix: p.prefix})
	return p, err
}

// start starts a worker: this program again.
func (p *play) start(name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p.print("main", "start "+name)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerEnv+"="+name, prefixEnv+"="+p.prefix)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.workers[name] = cmd
	go func() {
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- line{name, s.Text()}
		}
	}()
	return nil
}

// until prints what happens until a worker has said one of some things.
func (p *play) until(ctx context.Context, name string, what ...string) error {
	patience := time.After(30 * time.Second)
	for seen := 0; ; {
		for ; seen < len(p.said); seen++ {
			if l := p.said[seen]; l.worker == name && slices.ContainsFunc(what, func(w string) bool { return strings.HasPrefix(l.text, w) }) {
				return nil
			}
		}
		select {
		case l := <-p.lines:
			p.print(l.worker, l.text)
			p.said = append(p.said, l)
		case <-patience:
			return fmt.Errorf("expected %s to say %q", name, what)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waiting waits until so many workers wait for the lock.
func (p *play) waiting(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		info, err := p.locks.Inspect(ctx, job)
		if err != nil || info.Waiting == n {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *play) signal(verb, name string, s syscall.Signal) error {
	p.print("main", verb+" "+name)
	if err := p.workers[name].Process.Signal(s); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}

// check looks whether the job was done as if one had done it.
func (p *play) check(ctx context.Context) error {
	done, err := progress(ctx, p.client, p.prefix)
	if err != nil {
		return err
	}
	// One may be missing, of a worker that was killed before it could say so, or said late, by one that was stopped before.
	said := map[int]string{}
	for _, l := range p.said {
		if n, err := strconv.Atoi(strings.TrimPrefix(l.text, "step ")); err == nil {
			if said[n] != "" {
				return fmt.Errorf("step %d was done by %s and %s", n, said[n], l.worker)
			}
			said[n] = l.worker
		}
	}
	if done != steps || said[steps] == "" {
		return fmt.Errorf("expected %d steps, got %d", steps, done)
	}
	p.print("main", fmt.Sprintf("%d steps, none twice", steps))
	return p.client.Do(ctx, p.client.B().Del().Key(resource(p.prefix)).Build()).Error()
}

func (p *play) print(who, what string) {
	fmt.Fprintf(p.out, "%.2fs  %-4s  %s\n", time.Since(p.began).Seconds(), who, what)
}

func (p *play) end() {
	for _, cmd := range p.workers {
		_ = cmd.Process.Kill() // most have ended by themselves
		_ = cmd.Wait()
	}
	_ = p.locks.Close(context.Background())
}
