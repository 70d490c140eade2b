package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

const qlenFile = "/proc/sys/net/unix/max_dgram_qlen"

// inNamespace calls f on a thread that is in a network namespace of its own, where that
// many datagrams fit into a socket. The sockets and processes that f makes belong to it.
func inNamespace(qlen int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := enterNamespace(qlen)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func enterNamespace(qlen int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace for -qlen: %w", err)
	}
	if err := os.WriteFile(qlenFile, []byte(strconv.Itoa(qlen)), 0o600); err != nil {
		return err
	}
	// Loopback is down at first; the DNS server is there.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
