package deadline

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBound_ByTheNearer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		epoch := time.Now()
		d := New(80 * time.Millisecond)
		within := func(ctx context.Context, least, most time.Duration) {
			t.Helper()
			bound, cancel := d.Bound(ctx, time.Since(epoch))
			defer cancel()
			began := time.Now()
			<-bound.Done()
			require.GreaterOrEqual(t, time.Since(began), least)
			require.LessOrEqual(t, time.Since(began), most)
			if ctx.Err() == nil {
				require.ErrorIs(t, bound.Err(), context.DeadlineExceeded)
			}
			require.Equal(t, ctx.Value(key{}), bound.Value(key{}))
		}
		background := context.Background()
		valued := context.WithValue(background, key{}, "v")
		cancellable, cancel := context.WithCancel(valued)
		defer cancel()
		for _, ctx := range []context.Context{background, valued, cancellable} {
			for range 3 {
				within(ctx, 70*time.Millisecond, 80*time.Millisecond)
				time.Sleep(3 * time.Millisecond) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
			}
		}
		near, cancel := context.WithTimeout(valued, 5*time.Millisecond)
		defer cancel()
		within(near, 5*time.Millisecond, 5*time.Millisecond)
		far, cancel := context.WithTimeout(valued, time.Hour)
		defer cancel()
		within(far, 70*time.Millisecond, 80*time.Millisecond)
		cancel()
		within(far, 0, 0)

		// Those that begin within an eighth share one context and its timer.
		a, _ := d.Bound(background, time.Since(epoch))
		time.Sleep(9 * time.Millisecond) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
		b, _ := d.Bound(background, time.Since(epoch))
		require.Same(t, a, b)
		time.Sleep(time.Millisecond) //nolint:forbidigo // synctest: a fake clock, which takes no time and cannot flake
		c, _ := d.Bound(background, time.Since(epoch))
		require.NotSame(t, a, c)
		<-c.Done()
	})
}

// slowTimer is a context whose deadline has passed and whose timer has not fired.
type slowTimer struct{ context.Context } //nolint:containedctx // it is one

func (slowTimer) Deadline() (time.Time, bool) { return time.Now().Add(-time.Microsecond), true }

func TestOver_AlsoBeforeTheTimerFires(t *testing.T) {
	t.Parallel()
	require.False(t, Over(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	require.False(t, Over(ctx))
	cancel()
	require.True(t, Over(ctx))
	require.True(t, Over(slowTimer{t.Context()}))
}
