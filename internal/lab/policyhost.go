package lab

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// PolicyHost is the HTTPS server that stands behind every mta-sts.<domain>
// (RFC 8461 3.2). It shows a certificate of the lab's authority for the name that
// the client asks for, unless it was given another one.
type PolicyHost struct {
	// Addr is the host:port it listens on.
	Addr string

	ca     *CA
	server *http.Server

	mu       sync.Mutex
	policies map[string]string           // by policy domain
	certs    map[string]*tls.Certificate // by host name
	requests []string
}

// StartPolicyHost listens on addr, port 443 where clients are to find it by the
// rules of MTA-STS.
func StartPolicyHost(addr string, ca *CA) (*PolicyHost, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("lab: policy host: %w", err)
	}
	h := &PolicyHost{
		Addr:     ln.Addr().String(),
		ca:       ca,
		policies: map[string]string{},
		certs:    map[string]*tls.Certificate{},
	}
	h.server = &http.Server{
		Handler:           http.HandlerFunc(h.serve),
		TLSConfig:         &tls.Config{GetCertificate: h.certificate},
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 10 * time.Second,
	}
	go h.server.ServeTLS(ln, "", "")
	return h, nil
}

// Close stops the server and cuts its connections.
func (h *PolicyHost) Close() { h.server.Close() }

// SetPolicy publishes a policy, given as its lines, for domain. No lines take it
// back.
func (h *PolicyHost) SetPolicy(domain string, lines ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(lines) == 0 {
		delete(h.policies, domain)
		return
	}
	h.policies[domain] = strings.Join(lines, "\r\n") + "\r\n"
}

// SetCertificate makes mta-sts.<domain> show cert.
func (h *PolicyHost) SetCertificate(domain string, cert tls.Certificate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.certs["mta-sts."+domain] = &cert
}

// Requests returns the policy domains that were asked for, in order.
func (h *PolicyHost) Requests() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

func (h *PolicyHost) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := strings.ToLower(hello.ServerName)
	if cert := h.certs[name]; cert != nil {
		return cert, nil
	}
	if _, ok := strings.CutPrefix(name, "mta-sts."); !ok {
		return nil, fmt.Errorf("lab: no policy host %q", name)
	}
	cert, err := h.ca.Issue(name)
	if err != nil {
		return nil, err
	}
	h.certs[name] = &cert
	return &cert, nil
}

func (h *PolicyHost) serve(w http.ResponseWriter, r *http.Request) {
	domain, _ := strings.CutPrefix(strings.ToLower(r.Host), "mta-sts.")
	h.mu.Lock()
	h.requests = append(h.requests, domain)
	policy, ok := h.policies[domain]
	h.mu.Unlock()
	if !ok || r.Method != http.MethodGet || r.URL.Path != "/.well-known/mta-sts.txt" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, policy)
}
