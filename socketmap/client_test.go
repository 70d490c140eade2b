package socketmap

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	replies := map[string]Reply{
		"a": OK("dane-only"), "b": NotFound(), "c": Temp("later"), "d": Timeout("slow"), "e": Perm("never"),
		"long": OK(strings.Repeat("x", MaxReply-len("OK "))),
	}
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		done <- Serve(t.Context(), conn, func(_ context.Context, _, key string) Reply { return replies[key] })
	}()
	c, err := Dial(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range replies {
		if got, err := c.Query("QUERY", key); got != want || err != nil {
			t.Errorf("%s: got %.100v, error %v; want %.100v", key, got, err, want)
		}
	}
	if _, err := c.Query("two words", "a"); err == nil {
		t.Error("map name with a blank sent")
	}
	if _, err := c.Query("QUERY", strings.Repeat("k", MaxQuery)); err == nil {
		t.Error("query too long sent")
	}
	c.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestClientBadReplies(t *testing.T) {
	tests := []struct {
		name, wire string
		want       error
	}{
		{"closed", "", io.ErrUnexpectedEOF},
		{"cut off", "9:NOT", io.ErrUnexpectedEOF},
		{"not a netstring", "OK dane\n", ErrMalformed},
		{"OK without a value", "3:OK ,", ErrMalformed},
		{"bare OK", "2:OK,", ErrMalformed},
		{"lower case", "7:ok dane,", ErrMalformed},
		{"too long", "100000:", ErrMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			near, far := net.Pipe()
			go func() {
				readNetstring(bufio.NewReader(far), MaxQuery)
				io.WriteString(far, test.wire)
				far.Close()
			}()
			c := &Client{conn: near, r: bufio.NewReader(near)}
			defer c.Close()
			if reply, err := c.Query("M", "a"); !errors.Is(err, test.want) {
				t.Errorf("got %v, error %v, want %v", reply, err, test.want)
			}
		})
	}
	t.Run("bare NOTFOUND", func(t *testing.T) {
		if reply, err := parseReply("NOTFOUND"); reply != NotFound() || err != nil {
			t.Errorf("got %v, error %v", reply, err)
		}
	})
}
