package remote

import (
	"context"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
)

// repeat calls fn, and at most twice more while again says so of its error, 50 to 200 ms
// later. It returns fn's last error, or the context's.
func repeat(ctx context.Context, again func(error) bool, fn func() error) error {
	policy := retrypolicy.NewBuilder[any]().HandleIf(func(_ any, err error) bool { return err != nil && ctx.Err() == nil && again(err) }).
		WithMaxRetries(2).WithBackoff(50*time.Millisecond, 200*time.Millisecond).WithJitterFactor(0.25).ReturnLastFailure().Build()
	return failsafe.With(policy).WithContext(ctx).Run(fn)
}
