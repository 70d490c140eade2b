package socketmap

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"ruapost"
	"ruapost/internal/metric"
)

var panics = metric.NewPanics("query")

const (
	// IdleTimeout is how long a connection may take to send its next query.
	// Postfix closes a connection that is idle or 100 s old; if the server closed
	// first, a query that crosses the close would cost a second connection.
	IdleTimeout = 2 * time.Minute
	// WriteTimeout is how long a client may take to accept a reply.
	WriteTimeout = 10 * time.Second
	// lastLook is how long a connection is still listened to when ctx has ended. It may
	// have been opened a moment ago, with a query under way: Postfix asks a second time if
	// a connection is closed on it, but not a third.
	lastLook = 50 * time.Millisecond
	// renewAfter is by how much either may be less: to set a deadline takes longer than
	// to look up an answer.
	renewAfter = time.Second

	// A query is a map name and a domain name, a reply seldom more than an
	// MTA-STS policy; both may be larger than these buffers.
	readBuffer  = 512
	writeBuffer = 2048
)

// Handler answers the query for key in the table mapName. Both are as received
// and may hold any octets. ctx has the values of the one given to Serve but
// does not end with it: a handler limits its own time.
type Handler func(ctx context.Context, mapName, key string) Reply

// Serve answers the queries that come over conn, one after the other, until
// the client closes it, and closes it in the end. A panic in the handler is
// logged, counted and answered with NOTFOUND.
//
// It returns nil if the client closed between two queries, or if ctx ended: queries
// are still answered then until none comes for 50 ms. Malformed input ends the connection
// without a reply and with an error wrapping ErrMalformed; silence for IdleTimeout, or a
// reply not taken within WriteTimeout, both up to a second less, with one wrapping
// os.ErrDeadlineExceeded.
func Serve(ctx context.Context, conn net.Conn, h Handler) error {
	defer conn.Close()
	wake := func() { conn.SetReadDeadline(time.Now().Add(lastLook)) }
	defer context.AfterFunc(ctx, wake)()
	handlerCtx := context.WithoutCancel(ctx)

	r := bufio.NewReaderSize(conn, readBuffer)
	buf := make([]byte, 0, writeBuffer)
	var deadlinesSet time.Time
	var mapName string
	for {
		renewDeadlines(conn, &deadlinesSet)
		if ctx.Err() != nil { // else wake comes after the deadline just set
			wake()
		}
		query, err := readNetstring(r, MaxQuery)
		if err == io.EOF || err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("socketmap: read query: %w", err)
		}
		// The key may hold blanks, the map name cannot.
		table, key, ok := bytes.Cut(query, []byte(" "))
		if !ok {
			return fmt.Errorf("socketmap: read query: %w: no blank after the map name", ErrMalformed)
		}
		if string(table) != mapName { // most clients ask one
			mapName = string(table)
		}
		reply := answer(handlerCtx, h, mapName, string(key))

		buf = reply.appendTo(buf[:0])
		renewDeadlines(conn, &deadlinesSet)
		if _, err := conn.Write(buf); err != nil {
			return fmt.Errorf("socketmap: write reply: %w", err)
		}
		if cap(buf) > 4*writeBuffer { // do not keep the largest reply's buffer for good
			buf = make([]byte, 0, writeBuffer)
		}
	}
}

// renewDeadlines sets conn's deadlines unless they were set a moment ago.
func renewDeadlines(conn net.Conn, set *time.Time) {
	if now := time.Now(); now.Sub(*set) > renewAfter {
		*set = now
		conn.SetReadDeadline(now.Add(IdleTimeout))
		conn.SetWriteDeadline(now.Add(WriteTimeout))
	}
}

// answer calls the handler. A panic must end neither the connection, which
// would defer the mail, nor the process.
func answer(ctx context.Context, h Handler, mapName, key string) (reply Reply) {
	defer func() {
		if v := recover(); v != nil {
			panics.Inc()
			slog.ErrorContext(ctx, "socketmap: handler panicked",
				"map", ruapost.Clean(mapName, 64),
				"key", ruapost.Clean(key, 253),
				"panic", ruapost.Clean(fmt.Sprint(v), 500),
				"stack", string(debug.Stack()))
			reply = NotFound()
		}
	}()
	return h(ctx, mapName, key)
}
