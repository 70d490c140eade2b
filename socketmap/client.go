package socketmap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// clientTimeout is how long Postfix waits for each of connecting, writing and
// reading.
const clientTimeout = 100 * time.Second

// Client asks a socketmap server as Postfix does. It is for tests, the
// demonstration and measuring; it is not safe for concurrent use.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
}

// Dial connects to the server at a "unix" or "tcp" address.
func Dial(ctx context.Context, network, addr string) (*Client, error) {
	d := net.Dialer{Timeout: clientTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("socketmap: %w", err)
	}
	return &Client{conn: conn, r: bufio.NewReader(conn)}, nil
}

// Query returns the server's reply. After an error the Client is of no further
// use. A connection closed instead of a reply gives an error wrapping
// io.ErrUnexpectedEOF, a reply that Postfix would not understand one wrapping
// ErrMalformed.
func (c *Client) Query(mapName, key string) (Reply, error) {
	size := len(mapName) + 1 + len(key)
	if size > MaxQuery || strings.Contains(mapName, " ") {
		return Reply{}, errors.New("socketmap: query too long or blank in the map name")
	}
	c.buf = strconv.AppendInt(c.buf[:0], int64(size), 10)
	c.buf = append(c.buf, ':')
	c.buf = append(c.buf, mapName...)
	c.buf = append(c.buf, ' ')
	c.buf = append(c.buf, key...)
	c.buf = append(c.buf, ',')

	c.conn.SetDeadline(time.Now().Add(clientTimeout))
	if _, err := c.conn.Write(c.buf); err != nil {
		return Reply{}, fmt.Errorf("socketmap: write query: %w", err)
	}
	payload, err := readNetstring(c.r, MaxReply)
	if err != nil {
		return Reply{}, fmt.Errorf("socketmap: read reply: %w", noEOF(err))
	}
	return parseReply(string(payload))
}

// parseReply reads a reply's payload with the strictness of Postfix: an OK
// without a value is an error there.
func parseReply(payload string) (Reply, error) {
	word, data, _ := strings.Cut(payload, " ")
	switch status := Status(word); {
	case status == StatusOK && data == "":
		return Reply{}, fmt.Errorf("socketmap: read reply: %w: OK without a value", ErrMalformed)
	case status == StatusNotFound:
		return NotFound(), nil
	case status == StatusOK, status == StatusTemp, status == StatusTimeout, status == StatusPerm:
		return Reply{status, data}, nil
	}
	return Reply{}, fmt.Errorf("socketmap: read reply: %w: unknown status", ErrMalformed)
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }
