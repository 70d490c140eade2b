package web

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"ruapost"
	"ruapost/internal/testhost"
)

// chromium is the browser that the pages are tried with, in Debian's package of that name.
const chromium = "/usr/bin/chromium"

// browser is a Chromium that may reach nothing but the pages, and what it complained of.
type browser struct {
	t    *testing.T
	ctx  context.Context
	site string

	mu         sync.Mutex
	complaints []string
}

// newBrowser returns nil if there is no Chromium, and that is allowed.
func newBrowser(t *testing.T, site string) *browser {
	t.Helper()
	if _, err := os.Stat(chromium); err != nil {
		if err := testhost.LeaveOut("web: tests with a browser", err); err != nil {
			t.Fatal(err)
		}
		return nil
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(chromium), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Headless, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.WSURLReadTimeout(time.Minute),
	}
	allocated, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocated)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx, site: site}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(chromedp.Listen(ctx, b.hear))
	call(b, log.Enable, cdp.Empty{})
	call(b, network.Enable, network.EnableParams{})
	call(b, runtime.Enable, cdp.Empty{})
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	return b
}

// hear notes what no page should cause: messages of the console, such as about the content
// security policy, and requests to elsewhere.
func (b *browser) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("console: %s %s", e.Entry.Text, e.Entry.URL))
	case *runtime.EventConsoleAPICalled:
		b.complaints = append(b.complaints, fmt.Sprintf("a script has called console.%s", e.Type))
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, "exception: "+e.ExceptionDetails.Text)
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, b.site) {
			b.complaints = append(b.complaints, "request to "+e.Request.URL)
		}
	case *page.EventJavascriptDialogOpening:
		b.complaints = append(b.complaints, "dialog: "+e.Message)
	}
}

func (b *browser) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// value runs an action that has one.
func value[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// call runs a command of the protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	result, err := chromedp.Call(b.ctx, command, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return result
}

// settled fails the test if the browser has complained.
func (b *browser) settled(where string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.complaints {
		b.t.Errorf("%s: %s", where, c)
	}
	b.complaints = nil
}

// look is a size of a window and a scheme of colours.
type look struct {
	name   string
	width  int64
	scheme string
}

var looks = []look{{"desktop-light", 1280, "light"}, {"desktop-dark", 1280, "dark"}, {"phone-light", 360, "light"}, {"phone-dark", 360, "dark"}}

func (b *browser) as(l look) {
	b.t.Helper()
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.width, Height: 800, DeviceScaleFactor: 1, Mobile: l.width < 600})
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}},
	})
}

// shot keeps a picture of the page, and fails the test if it is wider than the window.
func (b *browser) shot(folder, name string, width int64) {
	b.t.Helper()
	if size := call(b, page.GetLayoutMetrics, cdp.Empty{}).CSSContentSize; int64(size.Width) > width {
		b.t.Errorf("%s: %v wide in a window of %d", name, size.Width, width)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), value(b, chromedp.FullScreenshot(100)), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// click clicks the link, button or summary that a selector finds, and waits for the page
// that comes then to have what the second one finds.
func (b *browser) click(selector, then string) {
	b.t.Helper()
	b.run(chromedp.Click(chromedp.CSS(selector)), chromedp.WaitVisible(chromedp.CSS(then)))
}

// html returns what a selector finds.
func (b *browser) html(selector string) string {
	b.t.Helper()
	return value(b, chromedp.OuterHTML(chromedp.CSS(selector)))
}

// The pages are clicked through as an administrator would, at a desk and on a phone, by day
// and by night, without scripts: every page is reached by links, buttons do what they say,
// and the browser finds nothing to complain of.
func TestBrowser(t *testing.T) {
	w := newWorld(t)
	w.live()
	server := httptest.NewServer(New(w.config()))
	defer server.Close()
	b := newBrowser(t, server.URL)
	if b == nil {
		return
	}
	folder := t.ArtifactDir()
	for _, l := range looks {
		b.as(l)
		b.run(chromedp.Navigate(server.URL + "/"))
		at := func(name string) {
			t.Helper()
			b.settled(l.name + " " + name)
			b.shot(folder, l.name+"-"+name, l.width)
		}
		b.run(chromedp.WaitVisible(chromedp.CSS(".plot svg")))
		at("overview")
		b.click(`nav a[href="/domains"]`, `form[action="/domains"]`)
		at("domains")
		b.click(`td a[href="/domain/example.com"]`, "#recorded")
		at("domain")
		b.click(`#recorded + .scroll a[href*="/next/"]`, ".rows")
		at("next")
		b.click(`nav a[href="/reports"]`, `form[action="/reports"]`)
		at("reports")
		b.click(`.tiles a[href*="state=failed"]`, `.tiles a[aria-current]`)
		b.click(`td a[href^="/report/"]`, "#content")
		at("report-failed")
		b.run(chromedp.Navigate(server.URL + "/report/" + w.reportID("example.com", ruapost.KindTLS)))
		b.click(`#content ~ details summary`, `#content ~ details pre`)
		at("report-tls")
		b.click(`nav a[href="/suppressions"]`, "#add")
		at("suppressions")
		b.click(`nav a[href="/dns"]`, "button.main")
		b.click("button.main", "#records")
		at("dns")
		b.run(chromedp.Navigate(server.URL + "/reports?q=nothing"))
		at("nothing")
	}
	b.as(looks[0])
	b.buttons(w, server.URL)
	b.byKeyboard(server.URL)
}

// buttons presses all that there are.
func (b *browser) buttons(w *world, site string) {
	b.t.Helper()
	b.run(chromedp.Navigate(site+"/suppressions"),
		chromedp.SendKeys(chromedp.CSS(`input[name="pattern"]`), "someone@example.org"),
		chromedp.SendKeys(chromedp.CSS(`form[action="/suppress"] input[name="for"]`), "30d"))
	b.click(`form[action="/suppress"] button`, "#done-suppress")
	if page := b.html("main"); !strings.Contains(page, "someone@example.org") {
		b.t.Errorf("not suppressed: %s", page)
	}
	b.click(`td.do button`, "#done-unsuppress")
	if page := b.html("main"); strings.Contains(page, "someone@example.org") {
		b.t.Errorf("still suppressed: %s", page)
	}
	id := w.reportID("example.com", ruapost.KindDMARC)
	b.run(chromedp.Navigate(site + "/report/" + id))
	b.click(`button.main`, "#done-resend")
	rep, err := w.store.Report(b.t.Context(), id)
	if err != nil || rep.State != ruapost.ReportComposed {
		b.t.Errorf("%+v, %v", rep, err)
	}
	b.click(`form[action="/suppress"] button`, "#done-suppress")
	b.settled("buttons")
}

// byKeyboard reaches the content by the first key, and every link and button by as many.
func (b *browser) byKeyboard(site string) {
	b.t.Helper()
	b.run(chromedp.Navigate(site+"/"), chromedp.KeyEvent(kb.Tab))
	if got := b.focused(); !strings.Contains(got, "skip") {
		b.t.Errorf("the first thing is %s", got)
	}
	b.run(chromedp.KeyEvent(kb.Enter), chromedp.KeyEvent(kb.Tab))
	if got := b.focused(); !strings.Contains(got, "summary") && !strings.Contains(got, "href") {
		b.t.Errorf("behind the skip link is %s", got)
	}
	b.run(chromedp.Navigate(site + "/"))
	var reached []string
	for range 8 {
		b.run(chromedp.KeyEvent(kb.Tab))
		reached = append(reached, b.focused())
	}
	for _, want := range []string{`href="/domains"`, `href="/reports"`, `href="/suppressions"`, `href="/dns"`, "<summary"} {
		if !slices.ContainsFunc(reached, func(s string) bool { return strings.Contains(s, want) }) {
			b.t.Errorf("%s is not reached by Tab: %q", want, reached)
		}
	}
	// On to a page, and a form, without a mouse.
	b.run(chromedp.Navigate(site + "/domains"))
	for !strings.Contains(b.focused(), `name="q"`) {
		b.run(chromedp.KeyEvent(kb.Tab))
	}
	b.run(chromedp.KeyEvent("shop"), chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(chromedp.CSS(`td a[href="/domain/shop.example"]`)),
		chromedp.WaitNotPresent(chromedp.CSS(`td a[href="/domain/example.com"]`)))
	b.settled("keyboard")
}

// focused returns the element that has the focus, as HTML, empty if none has.
func (b *browser) focused() string {
	b.t.Helper()
	nodes := value(b, chromedp.QueryNodeIDs(chromedp.CSSAll("*:focus"), chromedp.AtLeast(0)))
	if len(nodes) == 0 {
		return ""
	}
	html := call(b, dom.GetOuterHTML, dom.GetOuterHTMLParams{NodeID: nodes[0]}).OuterHTML
	return html[:min(len(html), 300)]
}
