package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/ratelimit"
	"github.com/redispatterns/redispatterns/ratelimit/httplimit"
)

const (
	window   = time.Second
	rate     = 50                     // per window
	slot     = 100 * time.Millisecond // a line of the timeline
	rush     = 700 * time.Millisecond // when many come
	lasts    = 2 * time.Second
	every    = 10 * time.Millisecond // then two come
	attempts = 5
)

// demo serves on a free port, and plays the clients.
func demo(ctx context.Context, client rueidis.Client, out io.Writer) error {
	prefix := "demo-" + rand.Text()
	service, err := newService(client, prefix)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", service)
	for name, construct := range map[string]func(rueidis.Client, ratelimit.Limit, ratelimit.Options) (*ratelimit.Limiter, error){
		"fixed": ratelimit.NewFixedWindow, "sliding": ratelimit.NewSlidingWindow,
	} {
		l, err := construct(client, ratelimit.Per(rate, window), ratelimit.Options{Prefix: prefix, Timeout: 5 * time.Second})
		if err != nil {
			return err
		}
		limit, err := httplimit.Middleware(l, func(r *http.Request) (string, error) { return r.URL.RawQuery, nil }, httplimit.Options{})
		if err != nil {
			return err
		}
		mux.Handle("/"+name, limit(http.HandlerFunc(quote)))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- serve(serving, listener, mux) }()
	base := "http://" + listener.Addr().String()
	err = timeline(ctx, base, out)
	if err == nil {
		err = headers(ctx, base, out)
	}
	stop()
	return errors.Join(err, <-ended)
}

// answer is one request that passed: when it was sent and answered, since the first.
type answer struct{ sent, answered time.Duration }

// timeline drives a fixed and a sliding window over the end of the first window.
func timeline(ctx context.Context, base string, out io.Writer) error {
	for attempt := range attempts {
		var fixed, sliding []answer
		var fixedErr, slidingErr error
		var both sync.WaitGroup
		url := fmt.Sprintf("?%d", attempt)
		both.Go(func() { fixed, fixedErr = drive(ctx, base+"/fixed"+url) })
		both.Go(func() { sliding, slidingErr = drive(ctx, base+"/sliding"+url) })
		both.Wait()
		if err := errors.Join(fixedErr, slidingErr); err != nil {
			return err
		}
		atEdge, smooth := busiest(fixed), busiest(sliding)
		if smooth > rate {
			return fmt.Errorf("the sliding window let %d requests through in a second", smooth)
		}
		if atEdge <= rate && attempt < attempts-1 {
			continue // the machine was too busy to send that fast
		}
		fmt.Fprintf(out, "%d requests per second; admitted in each %v, with 20 asked for from %v on\n\n", rate, slot, rush)
		fmt.Fprintf(out, "%7s  %-28s %s\n", "at", "fixed", "sliding")
		for at := time.Duration(0); at < lasts; at += slot {
			a, b := within(fixed, at), within(sliding, at)
			line := fmt.Sprintf("%5dms %2d %-25s %2d %s", at.Milliseconds(), a, strings.Repeat("#", a), b, strings.Repeat("#", b))
			fmt.Fprintln(out, strings.TrimRight(line, " "))
		}
		fmt.Fprintf(out, "in the busiest second: fixed %d, sliding %d\n", atEdge, smooth)
		return nil
	}
	return nil
}

// drive sends one request, which begins the first window, and from rush on many.
func drive(ctx context.Context, url string) ([]answer, error) {
	began := time.Now()
	var passed []answer
	var failed error
	var mu sync.Mutex
	var requests sync.WaitGroup
	ask := func() {
		sent := time.Since(began)
		status, _, _, err := get(ctx, url, "")
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			failed = err
		case status == http.StatusOK:
			passed = append(passed, answer{sent, time.Since(began)})
		case status != http.StatusTooManyRequests:
			failed = fmt.Errorf("status %d", status)
		}
	}
	ask()
	for at := rush; at < lasts; at += every {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Until(began.Add(at))):
		}
		requests.Go(ask)
		requests.Go(ask)
	}
	requests.Wait()
	return passed, failed
}

func within(answers []answer, from time.Duration) (n int) {
	for _, a := range answers {
		if a.answered >= from && a.answered < from+slot {
			n++
		}
	}
	return n
}

// busiest returns how many requests passed in one window at least: those that were sent and answered in it.
func busiest(answers []answer) (most int) {
	for _, first := range answers {
		n := 0
		for _, a := range answers {
			if a.sent >= first.sent && a.answered < first.sent+window {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// headers shows what a free user is told.
func headers(ctx context.Context, base string, out io.Writer) error {
	fmt.Fprintln(out, "\na free user asks 6 times")
	for i := range 6 {
		status, header, body, err := get(ctx, base+"/quote", "free-alice")
		if err != nil {
			return err
		}
		if (status == http.StatusOK) != (i < 5) {
			return fmt.Errorf("request %d of 5 in ten seconds got status %d", i+1, status)
		}
		fmt.Fprintf(out, "%d  RateLimit: %s\n", status, header.Get("RateLimit"))
		if status != http.StatusOK {
			fmt.Fprintf(out, "     RateLimit-Policy: %s\n     Retry-After: %s\n     %s", header.Get("RateLimit-Policy"), header.Get("Retry-After"), body)
		}
	}
	status, header, _, err := get(ctx, base+"/quote", "paid-alice")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("a paid user got status %d", status)
	}
	fmt.Fprintf(out, "\na paid user\n%d  RateLimit: %s\n", status, header.Get("RateLimit"))
	return err
}

func get(ctx context.Context, url, token string) (status int, header http.Header, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, "", err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, string(content), err
}
