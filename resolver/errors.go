package resolver

import (
	"context"
	"errors"
	"net"

	"ruapost"
)

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
