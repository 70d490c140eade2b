package main

import (
	"bufio"
	"net"
	"net/textproto"

	"github.com/emersion/go-milter"
)

// noopVariable is the environment variable that makes a process of this program a milter
// at the socket that it names.
const noopVariable = "RUAPOST_BENCH_NOOP"

// serveNoop is the milter that does nothing. It wants the same options as ruapost-milter
// and reads as it does: both save most of what the protocol costs.
func serveNoop(socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &milter.Server{
		NewMilter: func() milter.Milter { return noop{} },
		Actions:   milter.OptAddHeader | milter.OptChangeHeader,
		Protocol: milter.OptNoUnknown | milter.OptNoData | milter.OptNoHeloReply | milter.OptNoRcptReply |
			milter.OptNoHeaderReply | milter.OptNoEOHReply | milter.OptNoBodyReply | milter.OptHeaderLeadingSpace,
	}
	return server.Serve(bufferedListener{l})
}

// noop goes on with everything, and is silent where it said it would be.
type noop struct{ milter.NoOpMilter }

func (noop) Helo(string, *milter.Modifier) (milter.Response, error) { return nil, nil }

func (noop) RcptTo(string, *milter.Modifier) (milter.Response, error) { return nil, nil }

func (noop) Header(string, string, *milter.Modifier) (milter.Response, error) { return nil, nil }

func (noop) Headers(textproto.MIMEHeader, *milter.Modifier) (milter.Response, error) { return nil, nil }

func (noop) BodyChunk([]byte, *milter.Modifier) (milter.Response, error) { return nil, nil }

func (noop) Body(*milter.Modifier) (milter.Response, error) { return milter.RespContinue, nil }

// bufferedListener gives its connections a buffer to read from.
type bufferedListener struct{ net.Listener }

func (l bufferedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return bufferedConn{conn, bufio.NewReaderSize(conn, 16<<10)}, nil
}

type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }
