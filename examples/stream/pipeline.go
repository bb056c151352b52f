package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/stream"
)

// pipeline publishes the orders, has the workers, and looks at what they do.
type pipeline struct {
	client  rueidis.Client
	key     string
	n       int
	orders  *stream.Stream[order]
	billing *stream.Group[order]
	workers map[string]*exec.Cmd
	out     io.Writer
	live    bool // out is a terminal
	began   time.Time

	published atomic.Int64
}

func newPipeline(client rueidis.Client, n int, out io.Writer) (*pipeline, error) {
	p := &pipeline{client: client, key: "example-" + rand.Text(), n: n, workers: map[string]*exec.Cmd{}, out: out, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.live = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	var err error
	p.orders, p.billing, err = newOrders(client, p.key)
	return p, err
}

// start starts a worker: this program again.
func (p *pipeline) start(name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerEnv+"="+name, keyEnv+"="+p.key)
	cmd.Stderr = os.Stderr
	p.workers[name] = cmd
	return cmd.Start()
}

func (p *pipeline) play(ctx context.Context) error {
	for _, name := range []string{"ann", "bob", "eve"} {
		if err := p.start(name); err != nil {
			return err
		}
	}
	published := make(chan error, 1)
	go func() { published <- p.publish(ctx) }()
	fmt.Fprintf(p.out, "%8s%7s%11s%7s%7s\n", "time", "lag", "in flight", "done", "dead")
	view := time.NewTicker(200 * time.Millisecond)
	defer view.Stop()
	killed := false
	patience := time.After(2 * time.Minute)
	for {
		select {
		case err := <-published:
			if err != nil {
				return err
			}
			published = nil
		case <-view.C:
			s, err := p.look(ctx)
			if err != nil {
				return err
			}
			p.show(s)
			if !killed && s.done >= p.n/4 {
				killed = true
				if err := p.workers["bob"].Process.Kill(); err != nil {
					return err
				}
				fmt.Fprintf(p.out, "%7.2fs  bob is killed\n", time.Since(p.began).Seconds())
			}
			if published == nil && killed && s.done+s.dead >= p.n && s.inFlight == 0 {
				return p.prove(ctx)
			}
		case <-patience:
			return errors.New("the workers did not finish")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// publish publishes the orders, one of them without a customer, and the first twice, as a sender does that got no answer.
func (p *pipeline) publish(ctx context.Context) error {
	for i := range p.n {
		o := order{Number: i, Customer: "customer-" + strconv.Itoa(i%7)}
		if i == p.n/2 {
			o.Customer = ""
		}
		id := stream.IdempotencyKey(strconv.Itoa(i))
		first, err := p.orders.Publish(ctx, o, id)
		if err != nil {
			return err
		}
		if i == 0 {
			if again, err := p.orders.Publish(ctx, o, id); err != nil || again != first {
				return fmt.Errorf("expected %s again, got %s: %w", first, again, err)
			}
		}
		p.published.Add(1)
		time.Sleep(time.Millisecond) // orders come one by one
	}
	return nil
}

type state struct{ lag, inFlight, done, dead int }

func (p *pipeline) look(ctx context.Context) (s state, err error) {
	info, err := p.billing.Info(ctx)
	if errors.Is(err, stream.ErrNoGroup) || err != nil && time.Since(p.began) < 2*time.Second { // no worker has begun yet
		return s, nil
	}
	if err != nil {
		return s, err
	}
	done, err := p.client.Do(ctx, p.client.B().Hlen().Key(billsKey(p.key)).Build()).AsInt64()
	s = state{inFlight: int(info.Pending), done: int(done), dead: int(info.Dead)}
	s.lag = max(0, int(p.published.Load())-s.inFlight-s.done-s.dead) // not info.Lag, which the embedded Redis gets wrong
	return s, err
}

func (p *pipeline) show(s state) {
	end := "\n"
	if p.live {
		end = "\r"
	}
	fmt.Fprintf(p.out, "%7.2fs%7d%11d%7d%7d%s", time.Since(p.began).Seconds(), s.lag, s.inFlight, s.done, s.dead, end)
}

// prove fails if an order was lost, or more were handled twice than a killed worker can have had.
func (p *pipeline) prove(ctx context.Context) error {
	bills, err := p.client.Do(ctx, p.client.B().Hgetall().Key(billsKey(p.key)).Build()).AsIntMap()
	if err != nil {
		return err
	}
	twice := 0
	for _, n := range bills {
		twice += int(n) - 1
	}
	var reason string
	for d, err := range p.billing.Dead(ctx) {
		if err != nil {
			return err
		}
		if d.Value.Number != p.n/2 || d.Attempts != attempts {
			return fmt.Errorf("order %d is dead after %d attempts: %s", d.Value.Number, d.Attempts, d.Reason)
		}
		reason = d.Reason
	}
	for i := range p.n {
		if bills[strconv.Itoa(i)] == 0 && i != p.n/2 {
			return fmt.Errorf("order %d is lost", i)
		}
	}
	if twice > 3*workers || reason == "" {
		return fmt.Errorf("%d orders were handled twice, and the dead one is %q", twice, reason)
	}
	fmt.Fprintf(p.out, "\n%d orders published, %d billed, %d of them twice since bob was killed, 1 a dead letter: %q, after %d attempts\nnone is lost\n",
		p.n, len(bills), twice, reason, attempts)
	keys := []string{p.key, billsKey(p.key), "{" + p.key + "}:dead:" + group}
	for _, key := range keys { // they have no TTL, and in a cluster several slots
		if err := p.client.Do(ctx, p.client.B().Del().Key(key).Build()).Error(); err != nil {
			return err
		}
	}
	return nil
}

func (p *pipeline) end() {
	for _, cmd := range p.workers {
		if cmd.Process != nil {
			_ = cmd.Process.Kill() // nothing is left to do
			_ = cmd.Wait()
		}
	}
}
