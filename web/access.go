package web

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ruapost"
)

const (
	// maxUsers bounds the file of passwords.
	maxUsers = 1000
	// After burst passwords that are wrong, one in each second is looked at.
	burst = 5
	// maxPassword is what bcrypt takes, in octets.
	maxPassword = 72
)

// Passwords are those of who may see the pages.
type Passwords struct {
	hashes map[string][]byte
	// unknown is compared with if there is no such user, so that nobody can tell by the time.
	unknown []byte
	// key makes what is remembered of passwords that were right: bcrypt takes too long to
	// be asked for each page.
	key [32]byte

	mu     sync.Mutex
	right  map[string][sha256.Size]byte // by user
	tokens float64
	filled time.Time
	now    func() time.Time
}

// LoadPasswords reads a file with a line USER:HASH for each user; empty lines and those that
// begin with "#" are left out.
func LoadPasswords(file string) (*Passwords, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("web: passwords: %w", err)
	}
	defer f.Close()
	p := &Passwords{hashes: map[string][]byte{}, right: map[string][sha256.Size]byte{}, tokens: burst, now: time.Now}
	rand.Read(p.key[:]) // does not fail
	p.filled = p.now()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, _ := strings.Cut(line, ":")
		_, err := bcrypt.Cost([]byte(hash))
		switch {
		case err != nil || user == "":
			return nil, fmt.Errorf("web: passwords: %s:%d: expected USER:HASH, as \"ruapost-reporter web -hash USER\" prints it", file, n)
		case len(p.hashes) == maxUsers:
			return nil, fmt.Errorf("web: passwords: %s has more than %d users", file, maxUsers)
		}
		p.hashes[user], p.unknown = []byte(hash), []byte(hash)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("web: passwords: %s: %w", file, err)
	}
	if len(p.hashes) == 0 {
		return nil, fmt.Errorf("web: passwords: %s has no user", file)
	}
	return p, nil
}

// HashPassword returns a line of a file of passwords for a user. The password is the first
// line of r.
func HashPassword(user string, r io.Reader) (string, error) {
	if user == "" || strings.Contains(user, ":") || ruapost.Clean(user, 100) != user {
		return "", errors.New("web: that cannot be a user's name")
	}
	line, err := bufio.NewReader(io.LimitReader(r, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("web: read password: %w", err)
	}
	password := strings.TrimRight(line, "\r\n")
	if len(password) < 8 || len(password) > maxPassword {
		return "", fmt.Errorf("web: a password has 8 to %d octets", maxPassword)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return "", fmt.Errorf("web: %w", err)
	}
	return user + ":" + string(hash), nil
}

// admit tells whether the request has a password that is right, and answers it if not.
func (p *Passwords) admit(w http.ResponseWriter, r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	if ok && p.remembers(user, password) {
		return true
	}
	if ok && !p.mayTry() {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "Too many wrong passwords; wait a little.", http.StatusTooManyRequests)
		return false
	}
	if ok && p.check(user, password) {
		return true
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="ruapost", charset="UTF-8"`)
	http.Error(w, "A password is needed.", http.StatusUnauthorized)
	return false
}

func (p *Passwords) sum(user, password string) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat(p.key[:], []byte(user), []byte{0}, []byte(password)))
}

func (p *Passwords) remembers(user, password string) bool {
	sum := p.sum(user, password)
	p.mu.Lock()
	right := p.right[user]
	p.mu.Unlock()
	return subtle.ConstantTimeCompare(sum[:], right[:]) == 1
}

// mayTry takes one of the tries that there are.
func (p *Passwords) mayTry() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.tokens = min(burst, p.tokens+now.Sub(p.filled).Seconds())
	p.filled = now
	if p.tokens < 1 {
		return false
	}
	p.tokens--
	return true
}

func (p *Passwords) check(user, password string) bool {
	hash, known := p.hashes[user]
	if !known {
		hash = p.unknown
	}
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil || !known {
		return false
	}
	sum := p.sum(user, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.right[user] = sum
	p.tokens = min(burst, p.tokens+1) // it was no wrong one
	return true
}

// isOurs tells whether a Host field names this server. A page of elsewhere whose name is
// made to resolve to a loopback address would not (DNS rebinding).
func (h *Handler) isOurs(host string) bool {
	name := host
	if n, _, err := net.SplitHostPort(host); err == nil {
		name = n
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || slices.Contains(h.Hosts, name)
}
