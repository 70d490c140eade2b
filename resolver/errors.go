package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"

	"ruapost"
	"ruapost/internal/metric"
)

var panics = metric.NewPanics("lookup")

// errNXDomain is inside the errors for names that do not exist.
var errNXDomain = errors.New("no such domain")

// IsNotFound reports whether err says that the name, or records of the wanted
// type, do not exist.
func IsNotFound(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && e.IsNotFound
}

// IsNXDomain reports whether err says that the name does not exist, nor any below
// it (RFC 8020). If an alias led to it, that is the alias's target.
func IsNXDomain(err error) bool {
	return IsNotFound(err) && errors.Is(err, errNXDomain)
}

// IsTemporary reports whether err says that the answer is not known at this time.
func IsTemporary(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e) && (e.IsTemporary || e.IsTimeout)
}

// IsServerFailure reports whether err says that a server answered SERVFAIL, as it does
// for a name whose signatures are bad (RFC 4035 5.5). It is false if no answer came, or
// one that says nothing of the name, such as REFUSED.
func IsServerFailure(err error) bool { return errors.Is(err, errServFail) }

// Safely runs lookup, which looks something up about name, and turns a panic into
// a temporary error, logged with its stack. Goroutines of lookups need it: nothing
// else would keep a panic there from ending the program.
func Safely(name string, lookup func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			panics.Inc()
			err = temporary(name, fmt.Errorf("panic: %v", p))
			slog.Error("panic, lookup counts as failed", "name", ruapost.Clean(name, 253),
				"panic", ruapost.Clean(fmt.Sprint(p), 500), "stack", string(debug.Stack()))
		}
	}()
	lookup()
	return nil
}

func nxDomain(name string) *net.DNSError {
	return &net.DNSError{
		UnwrapErr: errNXDomain, Err: errNXDomain.Error(),
		Name: ruapost.Clean(name, 253), IsNotFound: true,
	}
}

func noData(name string) *net.DNSError {
	return &net.DNSError{Err: "no such records", Name: name, IsNotFound: true}
}

// temporary is the error of a lookup that cause ended without an answer.
func temporary(name string, cause error) *net.DNSError {
	return &net.DNSError{
		UnwrapErr: cause, Err: ruapost.Clean(cause.Error(), 200), Name: name,
		IsTimeout:   isTimeout(cause),
		IsTemporary: true,
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}
