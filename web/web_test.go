package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ruapost"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // reports that cannot be sent are logged
	os.Exit(m.Run())
}

// get returns what a handler answers.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost"+path, nil))
	return w
}

// press sends a form.
func press(h http.Handler, path string, form url.Values, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "http://localhost"+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// links are those of a page that lead to others here.
func links(page string) (paths []string) {
	for _, m := range regexp.MustCompile(`href="(/[^"]*|\?[^"]*)"`).FindAllStringSubmatch(page, -1) {
		paths = append(paths, strings.ReplaceAll(m[1], "&amp;", "&"))
	}
	return paths
}

// Every page that a link leads to is there, has the headers that keep hostile text harmless,
// and that text only escaped.
func TestEveryPage(t *testing.T) {
	w := newWorld(t)
	w.live()
	h := New(w.config())
	seen := map[string]bool{}
	queue := []string{"/", "/dns?run=1"}
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		if seen[path] || len(seen) > 300 {
			continue
		}
		seen[path] = true
		res := get(h, path)
		if res.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, res.Code, res.Body)
			continue
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
		} {
			if !strings.Contains(res.Header().Get(name), want) {
				t.Errorf("%s: %s is %q", path, name, res.Header().Get(name))
			}
		}
		body := res.Body.String()
		if !strings.HasPrefix(res.Header().Get("Content-Type"), "text/html") {
			continue
		}
		for _, bad := range []string{"<script", "onerror=alert(2)>", " style=", "javascript:", "ZgotmplZ", "<no value>", "%!"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s has %q", path, bad)
			}
		}
		for _, to := range links(body) {
			if strings.HasPrefix(to, "?") {
				base, _, _ := strings.Cut(path, "?")
				to = base + to
			}
			queue = append(queue, to)
		}
	}
	for _, want := range []string{"/domain/example.com", "/reports?state=failed", "/suppressions", "/domains"} {
		if !seen[want] {
			t.Errorf("no link leads to %s", want)
		}
	}
	if len(seen) < 40 {
		t.Errorf("only %d pages", len(seen))
	}
}

// The figures are those of the store, to the message: what was sealed, what is recorded, and
// no day that was not counted.
func TestFigures(t *testing.T) {
	w := newWorld(t)
	w.live()
	h := New(w.config())
	overview := get(h, "/").Body.String()
	for _, want := range []string{
		"As of <time datetime=\"2026-11-22T15:04:05Z\">", "On grey days nothing was counted.",
		"2026-10-29: nothing was counted", // before the first
		`href="/domain/example.com"`, `<code>198.51.100.77</code>`,
	} {
		if !strings.Contains(overview, want) {
			t.Errorf("the overview has no %q", want)
		}
	}
	// Three days with 3 messages in each of five domains, but for three reports that were not
	// made as their recipients are suppressed, one of them since sendmail knew nobody there.
	if n := regexp.MustCompile(`198\.51\.100\.77</code></td><td class="n">([^<]*)<meter`).FindStringSubmatch(overview); n == nil || n[1] != "36" {
		t.Errorf("the worst source: %q", n)
	}
	s, err := w.reporter.Survey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := s.Domains["quiet.example"]; c == nil || c[ruapost.OutcomePass] != 3*5 || c[ruapost.OutcomeReject] != 3*6 || c[ruapost.OutcomeFail] != 3*3 ||
		c[ruapost.OutcomeSTS] != 3 || c[ruapost.OutcomeSTSFailed] != 3 || c[ruapost.OutcomeNoTLSPolicy] != 3 || c.Total() != 3*5+3*6+3*3+9 {
		t.Errorf("quiet.example: %v", c)
	}
	domain := get(h, "/domain/example.org").Body.String()
	for _, want := range []string{"The next dmarc report, of 2026-11-22", "certificate-expired", "What it will say", "p=reject"} {
		if !strings.Contains(domain, want) {
			t.Errorf("the page of the domain has no %q", want)
		}
	}
}

// A store without anything has pages, too, and none of them tells of figures.
func TestEmpty(t *testing.T) {
	h := New(newWorld(t).config())
	for _, path := range []string{"/", "/domains", "/reports", "/suppressions", "/dns"} {
		if res := get(h, path); res.Code != http.StatusOK {
			t.Errorf("%s: %d", path, res.Code)
		}
	}
	if body := get(h, "/").Body.String(); strings.Contains(body, "<svg") || !strings.Contains(body, "No message has been judged") {
		t.Error("a plot of nothing")
	}
}

func TestNotThere(t *testing.T) {
	w := newWorld(t)
	w.live()
	h := New(w.config())
	for _, path := range []string{
		"/nothing", "/domain/unknown.example", "/domain/EXAMPLE.com", "/domain/..%2f..", "/domain/a%20b", "/report/0123456789", "/report/x", "/report/%00",
		"/domain/example.com/next/0", "/domain/example.com/next/x", "/report/0123456789/report.xml.gz", "/assets/base.html",
	} {
		if res := get(h, path); res.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, res.Code)
		}
	}
	id := w.reportID("example.com", ruapost.KindDMARC)
	for _, file := range []string{"report.json.gz", "..%2fdb", ".lock", "%2e%2e%2f%2e%2e%2fdb"} {
		if res := get(h, "/report/"+id+"/"+file); res.Code != http.StatusNotFound {
			t.Errorf("%s: %d", file, res.Code)
		}
	}
	if res := press(h, "/", nil); res.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /: %d", res.Code)
	}
}

func (w *world) reportID(domain string, kind ruapost.Kind) string {
	for rep, err := range w.store.Reports(context.Background()) {
		w.must(err)
		if rep.Domain == domain && rep.Kind == kind {
			return rep.ID
		}
	}
	w.t.Fatalf("no %s report about %s", kind, domain)
	return ""
}

// What is downloaded is what receivers get, and no browser takes it for a page.
func TestDownload(t *testing.T) {
	w := newWorld(t)
	w.live()
	h := New(w.config())
	for kind, want := range map[ruapost.Kind][2]string{
		ruapost.KindDMARC: {"report.xml.gz", "<feedback"}, ruapost.KindTLS: {"report.json.gz", `"policies"`},
	} {
		id := w.reportID("example.com", kind)
		res := get(h, "/report/"+id+"/"+want[0])
		zr, err := gzip.NewReader(bytes.NewReader(res.Body.Bytes()))
		if err != nil {
			t.Fatalf("%s: %d %v", kind, res.Code, err)
		}
		if content, err := io.ReadAll(zr); err != nil || !strings.Contains(string(content), want[1]) || !strings.Contains(string(content), id) {
			t.Errorf("%s: %v: %.200s", kind, err, content)
		}
		disposition := res.Header().Get("Content-Disposition")
		if !strings.HasPrefix(disposition, `attachment; filename=`) || !strings.Contains(disposition, "reports.example.net!example.com!") ||
			res.Header().Get("Content-Type") != "application/gzip" {
			t.Errorf("%s: %v", kind, res.Header())
		}
	}
}

func TestButtons(t *testing.T) {
	w := newWorld(t)
	w.live()
	h := New(w.config())
	get(h, "/suppressions") // that what is shown afterwards is not of before

	res := press(h, "/suppress", url.Values{"pattern": {"Dmarc@Example.COM"}, "for": {"30d"}, "reason": {hostile}})
	if res.Code != http.StatusSeeOther {
		t.Fatalf("%d %s", res.Code, res.Body)
	}
	if page := get(h, res.Header().Get("Location")).Body.String(); !strings.Contains(page, "<code>Dmarc@example.com</code>") && !strings.Contains(page, "<code>dmarc@example.com</code>") ||
		!strings.Contains(page, "Suppressed: nothing is sent there.") {
		t.Errorf("the suppression is not shown: %s", page)
	}
	if res := press(h, "/unsuppress", url.Values{"pattern": {"dmarc@quiet.example"}}); res.Code != http.StatusSeeOther {
		t.Errorf("%d %s", res.Code, res.Body)
	}
	if page := get(h, "/suppressions").Body.String(); strings.Contains(page, "dmarc@quiet.example") {
		t.Error("it is still suppressed")
	}
	for _, form := range []url.Values{{"pattern": {""}}, {"pattern": {"a b"}}, {"pattern": {"x.example"}, "for": {"-1d"}}, {"pattern": {"x.example"}, "for": {"x"}}} {
		if res := press(h, "/suppress", form); res.Code != http.StatusBadRequest {
			t.Errorf("%v: %d", form, res.Code)
		}
	}
	if res := press(h, "/unsuppress", url.Values{"pattern": {"unknown.example"}}); res.Code != http.StatusNotFound {
		t.Errorf("%d", res.Code)
	}

	id := w.reportID("example.org", ruapost.KindDMARC)
	res = press(h, "/report/"+id+"/resend", url.Values{"address": {"dmarc@example.org"}})
	if res.Code != http.StatusSeeOther {
		t.Fatalf("%d %s", res.Code, res.Body)
	}
	rep, err := w.store.Report(t.Context(), id)
	if err != nil || rep.State != ruapost.ReportComposed || rep.Recipients[0].State != ruapost.RecipientWaiting {
		t.Errorf("%+v, %v", rep, err)
	}
	if res := press(h, "/report/"+id+"/resend", url.Values{"address": {"other@example.org"}}); res.Code != http.StatusConflict {
		t.Errorf("an address that is no recipient's: %d", res.Code)
	}
	if res := press(h, "/suppress", url.Values{"reason": {strings.Repeat("x", 1<<20)}}); res.Code != http.StatusBadRequest {
		t.Errorf("a huge form: %d", res.Code)
	}
}

// No site but this one can press a button (CSRF), and nobody if they are off.
func TestForeignForms(t *testing.T) {
	w := newWorld(t)
	form := url.Values{"pattern": {"example.com"}}
	h := New(w.config())
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"}, {"Origin", "http://localhost:81"},
	} {
		if res := press(h, "/suppress", form, header...); res.Code != http.StatusForbidden {
			t.Errorf("%v: %d", header, res.Code)
		}
	}
	cfg := w.config()
	cfg.ReadOnly = true
	locked := New(cfg)
	for _, path := range []string{"/suppress", "/unsuppress", "/report/0123456789/resend"} {
		if res := press(locked, path, form); res.Code != http.StatusForbidden {
			t.Errorf("%s: %d", path, res.Code)
		}
	}
	if page := get(locked, "/suppressions").Body.String(); strings.Contains(page, `method="post"`) || !strings.Contains(page, "web.password_file") {
		t.Error("there are buttons")
	}
	if list, err := w.store.Suppressions(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
	if res := press(h, "/suppress", form, "Sec-Fetch-Site", "same-origin"); res.Code != http.StatusSeeOther {
		t.Errorf("our own form: %d", res.Code)
	}
}

// A page of elsewhere whose name resolves to us (DNS rebinding) gets nothing.
func TestHosts(t *testing.T) {
	cfg := newWorld(t).config()
	cfg.Hosts = []string{"mail.example.net"}
	h := New(cfg)
	for host, want := range map[string]int{
		"localhost": 200, "localhost:9186": 200, "LOCALHOST.": 200, "127.0.0.1:9186": 200, "[::1]:9186": 200, "[::1]": 200, "192.0.2.1": 200,
		"mail.example.net": 200, "Mail.Example.Net:8080": 200,
		"evil.example": 421, "localhost.evil.example": 421, "evil.example:9186": 421, "": 421, "127.0.0.1.evil.example": 421, "mail.example.net.evil": 421,
	} {
		r := httptest.NewRequest("GET", "/suppressions", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: %d, want %d", host, w.Code, want)
		}
	}
}

// Domains that begin alike, or have others in their names, are apart; lists are bounded.
func TestLists(t *testing.T) {
	w := newWorld(t)
	w.live()
	var many []ruapost.Tally
	for i := range 450 {
		tally := ruapost.Tally{Day: ruapost.Day(afternoon).Start, Kind: ruapost.KindDMARC, Domain: strings.Repeat("x", i%60+1) + ".example"}
		tally.Domain = "d" + strings.Repeat("0", i/60) + tally.Domain
		tally.Counts[ruapost.OutcomePass] = 1
		many = append(many, tally)
	}
	w.must(w.store.AddTallies(t.Context(), many...))
	h := New(w.config())
	page := get(h, "/domains?sort=name").Body.String()
	if n := strings.Count(page, `<tr><td><a href="/domain/`); n != pageRows {
		t.Errorf("%d lines on a page", n)
	}
	if !strings.Contains(page, "1–200 of 455") || !slices.Contains(links(page), "?page=2&sort=name") {
		t.Errorf("the way to the next page is missing: %v", links(page))
	}
	last := get(h, "/domains?sort=name&page=3").Body.String()
	if !strings.Contains(last, "401–455 of 455") || !slices.Contains(links(last), "?page=2&sort=name") {
		t.Error("the last page")
	}
	for _, page := range []string{"99", "-1", "x", "9999999999999999999"} {
		if res := get(h, "/domains?page="+page); res.Code != http.StatusOK {
			t.Errorf("page %s: %d", page, res.Code)
		}
	}
	if page := get(h, "/domains?q=SHOP").Body.String(); strings.Count(page, `<tr><td><a`) != 1 || !strings.Contains(page, "/domain/shop.example") {
		t.Error("the search")
	}
	if page := get(h, "/reports?state=waiting&kind=dmarc").Body.String(); !strings.Contains(page, "slow.example") || strings.Contains(page, "shop.example</a>") {
		t.Error("the filter of reports")
	}
}
