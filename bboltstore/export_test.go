package bboltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ruapost"
)

// What is exported and imported is the same store: the same groups and rows, and new
// groups do not get the IDs of old ones.
func TestExportImport(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	mustRecord(t, s, evaluation("sealed.example", 1), evaluation("composed.example", 1))
	fill(t, s, 2500)
	mustRecord(t, s, evaluation("example.net", 1), evaluation("example.net", 1), forged("example.net", 2))
	err := s.RecordSessions(t.Context(), []ruapost.Session{{
		Time: noon, Domain: "example.org", Failed: true, Policy: ruapost.TLSPolicy{Type: "sts", Domain: "example.org"},
		Failures: []ruapost.TLSFailure{{Result: ruapost.ResultValidationFailure, Reason: "\u2028 <&> \x00"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	after := noon.Add(24 * time.Hour)
	for _, g := range groups(t, s, after) {
		if strings.HasPrefix(g.Domain, "sealed") || strings.HasPrefix(g.Domain, "composed") {
			r := &ruapost.Report{ID: g.Domain, Kind: g.Kind, Domain: g.Domain, Groups: []ruapost.Group{g}, State: ruapost.ReportSealed}
			if err := s.Seal(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if g.Domain == "composed.example" {
				if err := s.DropRows(t.Context(), r.Groups); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	var exported bytes.Buffer
	if err := s.Export(t.Context(), &exported); err != nil {
		t.Fatal(err)
	}

	moved := openStore(t, filepath.Join(t.TempDir(), "db"))
	if err := moved.Import(t.Context(), bytes.NewReader(exported.Bytes())); err != nil {
		t.Fatal(err)
	}
	checkStore(t, moved)
	was, is := groups(t, s, after), groups(t, moved, after)
	if d := cmp.Diff(was, is); d != "" {
		t.Error(d)
	}
	rows := func(s *Store, id ruapost.GroupID) (rows []ruapost.Row) {
		for r, err := range s.Rows(t.Context(), id) {
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, r)
		}
		return rows
	}
	for id := ruapost.GroupID(1); id < 10; id++ {
		if d := cmp.Diff(rows(s, id), rows(moved, id)); d != "" {
			t.Errorf("group %d: %s", id, d)
		}
	}
	var again bytes.Buffer
	if err := moved.Export(t.Context(), &again); err != nil || !bytes.Equal(exported.Bytes(), again.Bytes()) {
		t.Errorf("the second export differs: %v", err)
	}
	mustRecord(t, moved, evaluation("sealed.example", 1))
	for _, g := range groups(t, moved, after) {
		if g.Domain == "sealed.example" && (g.Total != 1 || g.ID <= 4) {
			t.Errorf("%+v", g)
		}
	}
	if err := moved.Import(t.Context(), bytes.NewReader(exported.Bytes())); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("import into a store that is not empty: %v", err)
	}
}

func TestImportRefuses(t *testing.T) {
	for _, text := range []string{
		"", "{}", "no JSON", `{"ruapost_store":2}`, `{"ruapost_store":1}` + "\n{}", `{"ruapost_store":1}` + "\nx",
		`{"ruapost_store":1}` + "\n" + `{"group":{"id":0}}`,
		`{"ruapost_store":1}` + "\n" + `{"report":{}}`,
		`{"ruapost_store":1,"last_group":1}` + "\n" + `{"row":{"group":1,"count":0,"data":{}}}`,
		// IDs that new groups would get, too.
		`{"ruapost_store":1,"last_group":1}` + "\n" + `{"row":{"group":2,"count":1,"data":{}}}`,
		`{"ruapost_store":1,"last_group":1}` + "\n" + `{"group":{"id":2,"kind":"dmarc","domain":"example.com"}}`,
		`{"ruapost_store":1,"last_group":1}` + "\n" + `{"report":{"id":"r","groups":[{"id":2}]}}`,
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		if err := s.Import(t.Context(), strings.NewReader(text)); err == nil {
			t.Errorf("%q was imported", text)
		}
	}
}

// hook does something once, when n bytes have gone through.
type hook struct {
	io.Reader
	n  int
	do func()
}

func (h *hook) count(n int) {
	if h.n -= n; h.n <= 0 && h.do != nil {
		do := h.do
		h.do = nil
		do()
	}
}

func (h *hook) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p[:min(len(p), 4096)])
	h.count(n)
	return n, err
}

func (h *hook) Write(p []byte) (int, error) {
	h.count(len(p))
	return len(p), nil
}

// An export reads its copy for as long as its reader likes, whoever else exports.
func TestExportsTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openStore(t, path)
	fill(t, s, 3000)
	var exported bytes.Buffer
	w := &hook{n: 8 << 10, do: func() {
		err := errors.Join(s.Drop(t.Context(), groups(t, s, noon.Add(24*time.Hour))), s.Compact(t.Context()), s.Export(t.Context(), io.Discard))
		if err != nil {
			t.Errorf("the second export: %v", err)
		}
	}}
	if err := s.Export(t.Context(), io.MultiWriter(w, &exported)); err != nil {
		t.Errorf("the first export: %v", err)
	}
	if n := strings.Count(exported.String(), `{"row"`); n != 3000 {
		t.Errorf("%d rows were exported", n)
	}
	if left, _ := filepath.Glob(path + ".export*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What is recorded while an import is under way is a group of its own.
func TestImportWhileRecording(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "db"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 1500 {
		if err := s.RecordEvaluation(ended, evaluation(fmt.Sprintf("d%d.example", i), 1)); err != nil && !errors.Is(err, ErrQueued) {
			t.Fatal(err)
		}
	}
	var exported bytes.Buffer
	if err := errors.Join(s.RecordEvaluation(t.Context(), evaluation("last.example", 1)), s.Export(t.Context(), &exported)); err != nil {
		t.Fatal(err)
	}
	in := exported.String()
	for name, c := range map[string]struct{ live, want string }{
		"another domain":  {"live%d.example", ""},
		"the same domain": {"d99%d.example", "is there already"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			moved, live := openStore(t, path), openStore(t, path)
			const n = 10
			// When the first thousand lines are there, and before the group is read.
			err := moved.Import(t.Context(), &hook{Reader: strings.NewReader(in), n: len(in) * 5 / 8, do: func() {
				for i := range n {
					mustRecord(t, live, evaluation(fmt.Sprintf(c.live, i), 77))
				}
			}})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("import: %v", err)
			}
			ids := map[ruapost.GroupID]string{}
			found := 0
			for _, g := range groups(t, moved, noon.Add(24*time.Hour)) {
				if ids[g.ID] != "" {
					t.Fatalf("%s and %s have ID %d", g.Domain, ids[g.ID], g.ID)
				}
				ids[g.ID] = g.Domain
				if got := counts(t, moved, g.ID); got["192.0.2.77"] > 0 {
					found++
					if len(got) != 1 || g.Total != 1 {
						t.Errorf("%s: total %d, rows %v", g.Domain, g.Total, got)
					}
				}
			}
			if found != n {
				t.Errorf("%d live groups", found)
			}
			if c.want == "" {
				checkStore(t, moved)
			}
		})
	}
}
