package web

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func passwordFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "passwords")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPasswords(t *testing.T) {
	line, err := HashPassword("anna", strings.NewReader("correct horse\n"))
	if err != nil || !strings.HasPrefix(line, "anna:$2") {
		t.Fatalf("%q, %v", line, err)
	}
	p, err := LoadPasswords(passwordFile(t, "# who\n\n"+line+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	p.now = func() time.Time { return now }
	p.filled = now
	cfg := newWorld(t).config()
	cfg.Passwords = p
	h := New(cfg)
	try := func(user, password string) int {
		r := httptest.NewRequest("GET", "http://localhost/suppressions", nil)
		if user != "" {
			r.SetBasicAuth(user, password)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if body := w.Body.String(); w.Code != 200 && strings.Contains(body, "<html") {
			t.Errorf("a page without a password: %s", body)
		}
		if w.Code == http.StatusUnauthorized && !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("header %v", w.Header())
		}
		return w.Code
	}
	for _, c := range []struct {
		user, password string
		want           int
	}{
		{"", "", 401}, {"anna", "correct horse", 200}, {"anna", "wrong horse", 401}, {"bert", "correct horse", 401}, {"anna", "", 401}, {"anna", "correct horse", 200},
	} {
		if got := try(c.user, c.password); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	// Guessing is slow, and does not lock out whoever is in.
	refused := 0
	for range 10 {
		if try("anna", "guess") == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused < 8 {
		t.Errorf("%d of 10 guesses were refused", refused)
	}
	if got := try("anna", "correct horse"); got != 200 {
		t.Errorf("whoever is in: %d", got)
	}
	now = now.Add(2 * time.Second)
	if got := try("anna", "guess"); got != 401 {
		t.Errorf("later: %d", got)
	}
}

func TestPasswordFile(t *testing.T) {
	for text, want := range map[string]string{
		"":                "has no user",
		"# nobody\n":      "has no user",
		"anna\n":          ":1: expected USER:HASH",
		"# x\nanna:plain": ":2: expected USER:HASH",
		":$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy": ":1: expected USER:HASH",
	} {
		if _, err := LoadPasswords(passwordFile(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := LoadPasswords("/nonexistent"); err == nil {
		t.Error("no file is no error")
	}
	for user, password := range map[string]string{
		"": "long enough", "a:b": "long enough", "a": "short", "b": strings.Repeat("x", 73), "c\n": "long enough", "d": "",
	} {
		if line, err := HashPassword(user, strings.NewReader(password)); err == nil {
			t.Errorf("%q %q: %s", user, password, line)
		}
	}
}
