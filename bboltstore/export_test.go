package bboltstore

import (
	"bytes"
	"errors"
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
		`{"ruapost_store":1}` + "\n" + `{"row":{"group":1,"count":0,"data":{}}}`,
	} {
		s := openStore(t, filepath.Join(t.TempDir(), "db"))
		if err := s.Import(t.Context(), strings.NewReader(text)); err == nil {
			t.Errorf("%q was imported", text)
		}
	}
}
