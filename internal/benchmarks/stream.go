package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/stream"
)

const (
	streamBatch = 256
	// streamBacklog is what consumers find: enough for a turn of the fastest.
	streamBacklog = 1_000_000
)

// streamCases publish and consume messages of 100 bytes. The limit is rueidis by hand: XADD, and one loop of XREADGROUP and
// XACK, 256 entries each. Watermill's subscriber is the peer.
func streamCases(b *bench) []benchCase {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{b.addr}})
	if err != nil {
		b.fail(err)
		return nil
	}
	b.closes = append(b.closes, client.Close)
	peer := goredis.NewClient(&goredis.Options{Addr: b.addr})
	b.closes = append(b.closes, func() { _ = peer.Close() })
	marshaller := redisstream.DefaultMarshallerUnmarshaller{}
	publisher, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: peer, Marshaller: marshaller}, watermill.NopLogger{})
	if err != nil {
		b.fail(err)
		return nil
	}
	payload := strings.Repeat("x", 98) // 100 bytes as JSON
	encoded := `"` + payload + `"`
	published := b.prefix + "published"
	s, err := stream.New(client, published, stream.Options[string]{MaxLen: 10_000})
	b.fail(err)
	xadd := func(key string) rueidis.Completed {
		return client.B().Xadd().Key(key).Maxlen().Almost().Threshold("10000").Id("*").FieldValue().FieldValue("data", encoded).Build()
	}
	values := make([]string, streamBatch)
	for i := range values {
		values[i] = payload
	}
	cases := []benchCase{
		{name: "stream/publish", goroutines: 64, contestants: []contestant{
			{name: "publish", do: func(ctx context.Context, _, _ int) error {
				_, err := s.Publish(ctx, payload)
				return err
			}},
			{name: "xadd", do: func(ctx context.Context, _, _ int) error { return client.Do(ctx, xadd(published)).Error() }},
		}},
		{name: "stream/publish_batch", goroutines: 1, contestants: []contestant{
			{name: "publish_batch", do: func(ctx context.Context, _, _ int) error {
				_, err := s.PublishBatch(ctx, values)
				return err
			}},
			{name: "xadd", do: func(ctx context.Context, _, _ int) error {
				cmds := make([]rueidis.Completed, streamBatch)
				for i := range cmds {
					cmds[i] = xadd(published)
				}
				for _, r := range client.DoMulti(ctx, cmds...) {
					if err := r.Error(); err != nil {
						return err
					}
				}
				return nil
			}},
			{name: "watermill", do: func(_ context.Context, _, _ int) error {
				msgs := make([]*message.Message, streamBatch)
				for i := range msgs {
					msgs[i] = message.NewMessage(watermill.NewShortUUID(), []byte(encoded))
				}
				return publisher.Publish(published+"-watermill", msgs...)
			}},
		}},
	}
	latency, err := newStreamLatency(b, client)
	if err != nil {
		b.fail(err)
		return nil
	}
	return append(cases, latency, streamConsume(b, client, marshaller, encoded))
}

// streamLatency measures from publishing to handling, in streams where nothing else happens. An operation is one message,
// there and handled.
func newStreamLatency(b *bench, client rueidis.Client) (benchCase, error) {
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	b.closes = append(b.closes, func() {
		stop()
		running.Wait()
	})
	key, rawKey := b.prefix+"latency", b.prefix+"latency-raw"
	s, err := stream.New(client, key, stream.Options[int]{MaxLen: 1000})
	if err != nil {
		return benchCase{}, err
	}
	handled, rawHandled := make(chan struct{}, 1), make(chan struct{}, 1)
	running.Go(func() {
		b.fail(s.Group("g", stream.GroupOptions[int]{}).Run(ctx, func(context.Context, *stream.Message[int]) error {
			handled <- struct{}{}
			return nil
		}))
	})
	if err := client.Do(ctx, client.B().XgroupCreate().Key(rawKey).Group("g").Id("0").Mkstream().Build()).Error(); err != nil {
		return benchCase{}, err
	}
	running.Go(func() {
		for ctx.Err() == nil {
			r, err := client.Do(ctx, client.B().Xreadgroup().Group("g", "c").Count(streamBatch).Block(1000).Streams().Key(rawKey).Id(">").Build()).AsXRead()
			if err != nil {
				continue // none came, or the end
			}
			for _, e := range r[rawKey] {
				rawHandled <- struct{}{}
				_ = client.Do(ctx, client.B().Xack().Key(rawKey).Group("g").Id(e.ID).Build()).Error() // the end, or nothing
			}
		}
	})
	wait := func(c chan struct{}) error {
		select {
		case <-c:
			return nil
		case <-time.After(5 * time.Second):
			return errors.New("a message was not handled")
		}
	}
	return benchCase{name: "stream/latency", goroutines: 1, contestants: []contestant{
		{name: "publish", do: func(ctx context.Context, _, n int) error {
			if _, err := s.Publish(ctx, n); err != nil {
				return err
			}
			return wait(handled)
		}},
		{name: "xadd", do: func(ctx context.Context, _, n int) error {
			err := client.Do(ctx, client.B().Xadd().Key(rawKey).Maxlen().Almost().Threshold("1000").Id("*").FieldValue().FieldValue("data", fmt.Sprint(n)).Build()).Error()
			if err != nil {
				return err
			}
			return wait(rawHandled)
		}},
	}}, nil
}

// streamConsume has each contestant work off the same backlog, from its beginning with a group of its own, and then forget it.
func streamConsume(b *bench, client rueidis.Client, marshaller redisstream.DefaultMarshallerUnmarshaller, encoded string) benchCase {
	ctx := context.Background()
	key, peerKey := b.prefix+"consume", b.prefix+"consume-watermill"
	s, err := stream.New(client, key, stream.Options[string]{})
	b.fail(err)
	fill := sync.OnceValue(func() error {
		for range streamBacklog / streamBatch {
			cmds := make([]rueidis.Completed, 0, streamBatch)
			for range streamBatch {
				cmds = append(cmds, client.B().Xadd().Key(key).Id("*").FieldValue().FieldValue("data", encoded).Build())
			}
			for _, r := range client.DoMulti(ctx, cmds...) {
				if err := r.Error(); err != nil {
					return err
				}
			}
		}
		for range 200 {
			cmds := make([]rueidis.Completed, 0, streamBatch)
			for range streamBatch {
				fields, err := marshaller.Marshal(peerKey, message.NewMessage(watermill.NewShortUUID(), []byte(encoded)))
				if err != nil {
					return err
				}
				add := client.B().Xadd().Key(peerKey).Id("*").FieldValue()
				for name, value := range fields {
					add = add.FieldValue(name, textOf(value))
				}
				cmds = append(cmds, add.Build())
			}
			for _, r := range client.DoMulti(ctx, cmds...) {
				if err := r.Error(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	b.closes = append(b.closes, func() { _ = client.Do(ctx, client.B().Unlink().Key(key, peerKey).Build()).Error() })
	groups := 0
	turn := func(name string, d time.Duration) (int, time.Duration, error) {
		if err := fill(); err != nil {
			return 0, 0, err
		}
		groups++
		group := fmt.Sprintf("%s-%d", name, groups)
		runCtx, stop := context.WithTimeout(ctx, d)
		defer stop()
		began := time.Now()
		var n int
		var err error
		switch name {
		case "run":
			g := s.Group(group, stream.GroupOptions[string]{})
			err = g.Run(runCtx, func(context.Context, *stream.Message[string]) error { return nil })
			n = int(g.Stats().Acked)
		case "raw":
			n, err = consumeRaw(runCtx, client, key, group)
		case "watermill":
			n, err = consumeWatermill(runCtx, b.addr, marshaller, peerKey, group)
		}
		took := time.Since(began)
		if err == nil && name != "watermill" && n >= streamBacklog {
			err = errors.New("the backlog is too short")
		}
		of := key
		if name == "watermill" {
			of = peerKey
		}
		return n, took, errors.Join(err, client.Do(ctx, client.B().XgroupDestroy().Key(of).Group(group).Build()).Error())
	}
	return benchCase{name: "stream/consume", goroutines: 1, turn: turn, contestants: []contestant{{name: "run"}, {name: "raw"}, {name: "watermill"}}}
}

func textOf(v any) string {
	if b, ok := v.([]byte); ok {
		return string(b)
	}
	return fmt.Sprint(v)
}

// consumeRaw is one loop: read 256, acknowledge 256.
func consumeRaw(ctx context.Context, client rueidis.Client, key, group string) (n int, err error) {
	always := context.WithoutCancel(ctx)
	if err := client.Do(always, client.B().XgroupCreate().Key(key).Group(group).Id("0").Build()).Error(); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		m, err := client.Do(always, client.B().Xreadgroup().Group(group, "c").Count(streamBatch).Block(1000).Streams().Key(key).Id(">").Build()).ToMap()
		if err != nil {
			return n, err
		}
		list := m[key]
		entries, err := list.ToArray()
		if err != nil {
			return n, err
		}
		ids := make([]string, len(entries))
		for i, e := range entries {
			parts, err := e.ToArray()
			if err != nil {
				return n, err
			}
			if ids[i], err = parts[0].ToString(); err != nil {
				return n, err
			}
		}
		if err := client.Do(always, client.B().Xack().Key(key).Group(group).Id(ids...).Build()).Error(); err != nil {
			return n, err
		}
		n += len(ids)
	}
	return n, nil
}

func consumeWatermill(
	ctx context.Context, addr string, marshaller redisstream.DefaultMarshallerUnmarshaller, key, group string,
) (n int, err error) {
	peer := goredis.NewClient(&goredis.Options{Addr: addr}) // the subscriber closes it
	subscriber, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: peer, Unmarshaller: marshaller, ConsumerGroup: group}, watermill.NopLogger{})
	if err != nil {
		return 0, err
	}
	defer func() { _ = subscriber.Close() }()
	messages, err := subscriber.Subscribe(ctx, key)
	if err != nil {
		return 0, err
	}
	for m := range messages {
		m.Ack()
		n++
	}
	return n, nil
}
