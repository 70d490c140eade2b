package lab

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// ServeConnect is an HTTPS proxy on ln: it connects the client with whatever target
// says for the host:port that was asked for. Port 443 belongs to root; a program
// that honours HTTPS_PROXY finds a policy host on any port through it. It returns
// when ln is closed.
func ServeConnect(ln net.Listener, target func(hostport string) string) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go connect(conn, target)
	}
}

func connect(client net.Conn, target func(string) string) {
	defer client.Close()
	r := bufio.NewReader(client)
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	server, err := net.Dial("tcp", target(req.Host))
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connected\r\n\r\n"); err != nil {
		return
	}
	go func() {
		defer client.Close()
		io.Copy(client, server)
	}()
	io.Copy(server, r)
}
