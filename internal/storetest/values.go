package storetest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ruapost"
)

var (
	noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	// over is when the windows of all that the tests record are over.
	over = noon.Add(7 * 24 * time.Hour)
)

// result returns the nth of many different results.
func result(n int) ruapost.DMARCResult {
	return ruapost.DMARCResult{
		SourceIP:    netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}),
		Disposition: ruapost.DispositionPass,
		AlignedDKIM: true,
		HeaderFrom:  "example.com",
		DKIM:        []ruapost.DKIMResult{{Domain: "example.com", Selector: "s1", Result: ruapost.AuthPass}},
		SPF:         ruapost.SPFResult{Domain: "example.com", Result: ruapost.AuthPass},
	}
}

// evaluation returns an evaluation about domain with the nth result.
func evaluation(domain string, n int) *ruapost.Evaluation {
	return &ruapost.Evaluation{
		Time: noon,
		Policy: ruapost.DMARCPolicy{
			Domain: domain, P: ruapost.DispositionReject, ADKIM: ruapost.Relaxed, ASPF: ruapost.Relaxed,
			FO: "0", Percent: 100, Discovery: "treewalk",
		},
		Result: result(n),
	}
}

// failure returns the nth of many different failures.
func failure(n int) ruapost.TLSFailure {
	return ruapost.TLSFailure{Result: ruapost.ResultCertificateExpired, ReceivingMX: fmt.Sprintf("mx%d.example.net", n)}
}

// session returns a session that failed if there are failures.
func session(domain string, failures ...ruapost.TLSFailure) ruapost.Session {
	return ruapost.Session{
		Time:     noon,
		Domain:   domain,
		Policy:   ruapost.TLSPolicy{Type: ruapost.PolicySTS, Domain: domain, Strings: []string{"version: STSv1"}, MXHosts: []string{"*." + domain}},
		Failed:   len(failures) > 0,
		Failures: failures,
	}
}

// longSession returns a session with n different failures: n rows.
func longSession(domain string, n int) ruapost.Session {
	failures := make([]ruapost.TLSFailure, n)
	for i := range failures {
		failures[i] = failure(i)
	}
	return session(domain, failures...)
}

func record(t *testing.T, s Store, evs ...*ruapost.Evaluation) {
	t.Helper()
	for _, e := range evs {
		if err := s.RecordEvaluation(t.Context(), e); err != nil {
			t.Fatalf("RecordEvaluation: %v", err)
		}
	}
}

func recordSessions(t *testing.T, s Store, sessions ...ruapost.Session) {
	t.Helper()
	if err := s.RecordSessions(t.Context(), sessions); err != nil {
		t.Fatalf("RecordSessions: %v", err)
	}
}

func groups(t *testing.T, s Store) []ruapost.Group {
	t.Helper()
	gs, err := s.Groups(t.Context(), over)
	if err != nil {
		t.Fatalf("Groups: %v", err)
	}
	return gs
}

// groupsOf returns the groups of one domain.
func groupsOf(t *testing.T, s Store, domain string) []ruapost.Group {
	t.Helper()
	var found []ruapost.Group
	for _, g := range groups(t, s) {
		if g.Domain == domain {
			found = append(found, g)
		}
	}
	return found
}

// oneGroup returns the only group there is.
func oneGroup(t *testing.T, s Store) ruapost.Group {
	t.Helper()
	gs := groups(t, s)
	if len(gs) != 1 {
		t.Fatalf("%d groups, want 1: %+v", len(gs), gs)
	}
	return gs[0]
}

// evaluations returns the group that evaluations like e make up.
func evaluations(e *ruapost.Evaluation, total, rows, listed, required int64) ruapost.Group {
	g := ruapost.Group{
		Kind: ruapost.KindDMARC, Window: ruapost.Day(e.Time), Domain: e.Policy.Domain, DMARC: &e.Policy,
		Total: total, Rows: rows, Listed: listed, Required: required,
	}
	if e.Result.AlignedDKIM || e.Result.AlignedSPF {
		g.Passed = total
		return g
	}
	g.Failed = total
	switch e.Result.Disposition {
	case ruapost.DispositionQuarantine:
		g.Quarantined = total
	case ruapost.DispositionReject:
		g.Rejected = total
	}
	return g
}

// sessions returns the group that sessions like s make up.
func sessions(s ruapost.Session, total, rows, listed, failed int64) ruapost.Group {
	return ruapost.Group{
		Kind: ruapost.KindTLS, Window: ruapost.Day(s.Time), Domain: s.Domain, TLS: &s.Policy,
		Total: total, Rows: rows, Listed: listed, Failed: failed,
	}
}

var anyID = cmpopts.IgnoreFields(ruapost.Group{}, "ID")

// wantGroups compares the groups there are, in any order, but for their IDs.
func wantGroups(t *testing.T, got []ruapost.Group, want ...ruapost.Group) {
	t.Helper()
	ids := map[ruapost.GroupID]bool{}
	for _, g := range got {
		if ids[g.ID] {
			t.Errorf("two groups have the ID %d", g.ID)
		}
		ids[g.ID] = true
	}
	inAnyOrder := cmpopts.SortSlices(func(a, b ruapost.Group) bool {
		a.ID, b.ID = 0, 0
		return form(a) < form(b)
	})
	if d := cmp.Diff(want, got, anyID, inAnyOrder, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("groups (-want +got):\n%s", d)
	}
}

// form returns the JSON form of a value: what makes rows equal.
func form(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// list reads the rows of a group, whose values are of type T: the count of each, by
// its JSON form.
func list[T any](ctx context.Context, s Store, id ruapost.GroupID) (map[string]int64, error) {
	found := map[string]int64{}
	var ended error
	for row, err := range s.Rows(ctx, id) {
		if ended != nil {
			return nil, fmt.Errorf("rows went on after the error: %w", ended)
		}
		if ended = err; err != nil {
			continue
		}
		var v T
		if err := json.Unmarshal(row.Data, &v); err != nil {
			return nil, fmt.Errorf("row %q: %w", row.Data, err)
		}
		if _, twice := found[form(v)]; twice {
			return nil, fmt.Errorf("row %s comes twice", row.Data)
		}
		found[form(v)] = row.Count
	}
	return found, ended
}

// wantRows compares the rows of a group with counts by the rows' JSON form.
func wantRows[T any](t *testing.T, s Store, id ruapost.GroupID, want map[string]int64) {
	t.Helper()
	got, err := list[T](t.Context(), s, id)
	if err != nil {
		t.Fatalf("Rows: %v", err)
	}
	if !maps.Equal(want, got) { // cmp.Diff takes long for many
		t.Errorf("rows of group %d (-want +got):\n%s", id, cmp.Diff(want, got))
	}
}

// report returns a report about groups, which must be of one kind, window and domain.
func report(id string, groups ...ruapost.Group) *ruapost.Report {
	r := &ruapost.Report{
		ID: id, Sealed: over, State: ruapost.ReportSealed, Groups: groups,
		Recipients: []ruapost.Recipient{{URI: "mailto:dmarc@example.com", Address: "dmarc@example.com", State: ruapost.RecipientWaiting}},
	}
	if len(groups) > 0 {
		r.Kind, r.Domain, r.Window = groups[0].Kind, groups[0].Domain, groups[0].Window
	}
	return r
}

func seal(t *testing.T, s Store, r *ruapost.Report) {
	t.Helper()
	if err := s.Seal(t.Context(), r); err != nil {
		t.Fatalf("Seal: %v", err)
	}
}

func reports(t *testing.T, s Store) []ruapost.Report {
	t.Helper()
	rs, err := listReports(t.Context(), s)
	if err != nil {
		t.Fatalf("Reports: %v", err)
	}
	return rs
}

func listReports(ctx context.Context, s Store) (found []ruapost.Report, err error) {
	for r, err := range s.Reports(ctx) {
		if err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, nil
}

// wantReports compares all reports, in the order of their IDs.
func wantReports(t *testing.T, s Store, want ...ruapost.Report) {
	t.Helper()
	if d := cmp.Diff(want, reports(t, s), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("reports (-want +got):\n%s", d)
	}
}

// filler gives every field of a value content of its own, so that fields which are
// added later are tested, too.
type filler struct {
	text string // goes into every string
	n    int
}

func (f *filler) fill(v reflect.Value) {
	f.n++
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = noon.Add(time.Duration(f.n) * time.Millisecond)
		return
	case *netip.Addr:
		*p = netip.AddrFrom4([4]byte{192, 0, byte(f.n >> 8), byte(f.n)})
		return
	case *json.RawMessage:
		*p, _ = json.Marshal([]any{f.text, f.n}) // which does not fail
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("%s%d", f.text, f.n))
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(f.n))
	case reflect.Uint64:
		v.SetUint(uint64(f.n))
	default:
		panic("storetest: cannot fill a " + v.Type().String())
	}
}

// filled returns a T with something in every field, and text in every string.
func filled[T any](text string) T {
	var v T
	(&filler{text: text}).fill(reflect.ValueOf(&v).Elem())
	return v
}

// variants returns base and, for each field of it, a copy that differs in this field.
func variants[T any](base T) []T {
	f := &filler{text: "other"}
	all := []T{base}
	for i := range reflect.TypeFor[T]().NumField() {
		v := base
		f.fill(reflect.ValueOf(&v).Elem().Field(i))
		all = append(all, v)
	}
	return all
}

// hostile are texts that have broken stores before.
var hostile = map[string]string{
	"NUL":           "a\x00b\x00",
	"quotes":        `'"` + "`" + `\'; DROP TABLE rows; -- ${x} %s %n {{.}} <!--]]>`,
	"controls":      "a\r\n.\r\n\t\x1b[2J\x7f\b",
	"4-byte runes":  "\U0001F4E8\U0010FFFD\U00020000",
	"separators":    "\u2028\u2029\ufeff\u202e\ufffd\uffff",
	"long":          strings.Repeat("\u00e4", 60),
	"looks like it": `{"count":7,"data":null}`,
}

// fuse is a context that ends when the store looks at it for the nth time: a call
// that is interrupted at a certain point.
type fuse struct {
	context.Context
	cancel context.CancelFunc
	looks  atomic.Int64
}

func newFuse(t *testing.T, looks int) *fuse {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	f := &fuse{Context: ctx, cancel: cancel}
	f.looks.Store(int64(looks))
	return f
}

func (f *fuse) Done() <-chan struct{} {
	f.look()
	return f.Context.Done()
}

func (f *fuse) Err() error {
	f.look()
	return f.Context.Err()
}

func (f *fuse) look() {
	if f.looks.Add(-1) == 0 {
		f.cancel()
	}
}

// blown says whether the context has ended.
func (f *fuse) blown() bool { return f.Context.Err() != nil }
