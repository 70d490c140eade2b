// Package web is the reporter's page for whoever runs the mail server: what came in and
// went out, what failed, and what became of the reports. It shows what the commands at the
// terminal show, by the same code, and has buttons for a few of them.
//
// Pages are made here, plots too; there are no scripts, and nothing comes from elsewhere.
// Nearly all text on them was written by strangers: domains, host names, DNS records,
// reports. It is escaped by html/template, and the content security policy lets nothing run
// that would get through.
package web

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"ruapost"
	"ruapost/check"
	"ruapost/reporting"
)

const (
	// pageRows is how many rows a page has, previewRows how many of them the page of a
	// domain has of its next report.
	pageRows    = 200
	previewRows = 10
	// maxBody bounds what a form may send, in octets.
	maxBody = 16 << 10
	// checkTimeout is for looking up what the DNS page shows.
	checkTimeout = 30 * time.Second
	// busyPages is how many pages are made at a time that take reading of the store or of
	// files, busyChecks how many that ask the DNS. The others wait: all of them at once would
	// take hundreds of megabytes, and the processors from the milter.
	busyPages, busyChecks = 2, 1
)

//go:embed assets
var assets embed.FS

// Config is what the pages are about, and who may use them.
type Config struct {
	Reporter *reporting.Reporter
	// Check looks at the DNS and the host; see check.Reporter.
	Check func(context.Context) ([]check.Finding, []check.Record)
	// Passwords are those of who may see the pages, nil if everybody may who gets this far.
	Passwords *Passwords
	// ReadOnly says that there are no buttons: anybody on this host could press them.
	ReadOnly bool
	// Hosts are the names, beside localhost and addresses, by which the pages are reached.
	Hosts []string
}

// Handler serves the pages.
type Handler struct {
	Config
	mux     *http.ServeMux
	pages   map[string]*template.Template
	surveys surveys
	acting  sync.Mutex // one button at a time
	origins *http.CrossOriginProtection
}

// New returns the handler of all pages.
func New(cfg Config) *Handler {
	h := &Handler{
		Config: cfg, mux: http.NewServeMux(), pages: parsePages(),
		origins: http.NewCrossOriginProtection(),
	}
	pages, checks := make(chan struct{}, busyPages), make(chan struct{}, busyChecks)
	h.surveys.survey = cfg.Reporter.Survey
	for pattern, serve := range map[string]func(*http.Request) (*answer, error){
		"GET /{$}":                          h.overview,
		"GET /domains":                      h.domains,
		"GET /domain/{domain}":              inTurn(pages, h.domain),
		"GET /domain/{domain}/next/{group}": inTurn(pages, h.next),
		"GET /reports":                      h.reports,
		"GET /report/{id}":                  inTurn(pages, h.report),
		"GET /report/{id}/{file}":           inTurn(pages, h.download),
		"GET /suppressions":                 h.suppressions,
		"GET /dns":                          inTurn(checks, h.dns),
		"POST /report/{id}/resend":          h.button(h.resend),
		"POST /suppress":                    h.button(h.suppress),
		"POST /unsuppress":                  h.button(h.unsuppress),
		"GET /style.css":                    asset("style.css", "text/css; charset=utf-8"),
		"GET /icon.svg":                     asset("icon.svg", "image/svg+xml"),
		"GET /":                             func(*http.Request) (*answer, error) { return nil, errNotFound },
	} {
		h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, serve) })
	}
	return h
}

// inTurn returns a page of which only so many are made at a time as slots has room for.
func inTurn(slots chan struct{}, page func(*http.Request) (*answer, error)) func(*http.Request) (*answer, error) {
	return func(r *http.Request) (*answer, error) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			return page(r)
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
}

// answer is what a page is answered with: the page of a template, a redirection, or bytes.
type answer struct {
	page  string
	title string
	data  any

	redirect string

	contentType string
	body        []byte
	write       func(http.ResponseWriter, *http.Request)
}

// An httpError is told to whoever asked.
type httpError struct {
	status int
	text   string
}

func (e httpError) Error() string { return e.text }

var (
	errNotFound = httpError{http.StatusNotFound, "There is no such page."}
	errReadOnly = httpError{http.StatusForbidden, "There are no buttons here: everybody on this host can open these pages. " +
		"Set web.password_file, or let web.listen be a unix socket."}
)

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	for name, value := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; " +
			"frame-ancestors 'none'; base-uri 'none'",
		"Referrer-Policy":              "same-origin",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Cache-Control":                "no-store",
	} {
		header.Set(name, value)
	}
	if !h.isOurs(r.Host) {
		http.Error(w, "This server has another name. Reach it as localhost or by its address, or add the name to web.hosts.", http.StatusMisdirectedRequest)
		return
	}
	if h.Passwords != nil && !h.Passwords.admit(w, r) {
		return
	}
	// A form of another site must not press our buttons with the browser's password.
	if err := h.origins.Check(r); err != nil {
		h.fail(w, r, httpError{http.StatusForbidden, "This form is not from here."})
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, page func(*http.Request) (*answer, error)) {
	a, err := page(r)
	switch {
	case err != nil:
		h.fail(w, r, err)
	case a.redirect != "":
		http.Redirect(w, r, a.redirect, http.StatusSeeOther)
	case a.write != nil:
		a.write(w, r)
	case a.contentType != "":
		w.Header().Set("Content-Type", a.contentType)
		w.Write(a.body)
	default:
		h.render(w, r, http.StatusOK, a)
	}
}

// fail tells of an error on a page. What is not to be told to whoever asks stands in the log.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil { // nobody waits for it any more
		return
	}
	told, ok := errors.AsType[httpError](err)
	switch {
	case ok:
	case errors.Is(err, ruapost.ErrNoReport), errors.Is(err, reporting.ErrNothing):
		told = httpError{http.StatusNotFound, ruapost.Clean(err.Error(), 500)}
	case errors.Is(err, reporting.ErrBusy):
		told = httpError{http.StatusConflict, "A run is sending reports. Try again when it is over; that may take as long as reporter.spread says."}
	default:
		slog.Error("web: page failed", "path", ruapost.Clean(r.URL.Path, 200), "err", err)
		told = httpError{http.StatusInternalServerError, ruapost.Clean(err.Error(), 500)}
	}
	h.render(w, r, told.status, &answer{page: "error", title: http.StatusText(told.status), data: told.text})
}

// view is what a template gets.
type view struct {
	Title, Path, Domain, Version string
	Buttons                      bool
	// Button is the one that led here, and Done what it did; both empty if none did.
	Button, Done string
	Data         any
}

func (h *Handler) render(w http.ResponseWriter, r *http.Request, status int, a *answer) {
	button := r.URL.Query().Get("done")
	v := view{
		Title: a.title, Path: r.URL.Path, Domain: h.Reporter.Domain, Version: ruapost.Version,
		Buttons: !h.ReadOnly, Button: button, Done: doneText[button], Data: a.data,
	}
	var b bytes.Buffer // so that a fault does not leave half a page
	if err := h.pages[a.page].Execute(&b, v); err != nil {
		slog.Error("web: page failed", "page", a.page, "err", err)
		http.Error(w, "This page failed; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func asset(name, contentType string) func(*http.Request) (*answer, error) {
	body, err := assets.ReadFile("assets/" + name)
	return func(*http.Request) (*answer, error) { return &answer{contentType: contentType, body: body}, err }
}

func parsePages() map[string]*template.Template {
	pages := map[string]*template.Template{}
	base := template.Must(template.New("base.html").Funcs(functions).ParseFS(assets, "assets/base.html"))
	for _, name := range []string{"overview", "domains", "domain", "next", "reports", "report", "suppressions", "dns", "error"} {
		pages[name] = template.Must(template.Must(base.Clone()).ParseFS(assets, "assets/"+name+".html"))
	}
	return pages
}

// domainPath is the path of the page of a domain.
func domainPath(domain string) string { return "/domain/" + url.PathEscape(domain) }

// domainOf returns the domain that a path names.
func domainOf(r *http.Request) (string, error) {
	name := r.PathValue("domain")
	domain, err := ruapost.ParseDomain(name)
	if err != nil || domain != name {
		return "", httpError{http.StatusNotFound, fmt.Sprintf("%q is no domain as reports have it.", ruapost.Clean(name, 100))}
	}
	return domain, nil
}

// isPlain tells whether s can stand in a file name.
func isPlain(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.')
	})
}
