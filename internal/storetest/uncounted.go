package storetest

import (
	"slices"
	"testing"

	"ruapost"
)

// uncounted returns what only adds failures. Whether it failed makes no difference.
func uncounted(domain string, failures ...ruapost.TLSFailure) ruapost.Session {
	se := session(domain, failures...)
	se.Uncounted = true
	return se
}

// Failures that are no session's are listed, and counted in no total.
func testUncounted(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	se, only := uncounted("example.com", failure(1)), uncounted("example.net", failure(1), failure(2))
	passed := only
	passed.Failed = false
	recordSessions(t, s, se, session("example.com"), session("example.com", failure(1)), only)
	recordSessions(t, other, se, passed)
	recordAt(t, other, "mail.log", "1", uncounted("example.com", failure(2), failure(2)))
	// One without failures says nothing.
	recordSessions(t, s, uncounted("example.com"), uncounted("example.org"))
	recordAt(t, s, "mail.log", "2", uncounted("example.org"))
	wantPosition(t, s, "mail.log", "2")
	mustClose(t, s)

	s = d.store(t)
	gs := groups(t, s)
	wantGroups(t, gs, sessions(se, 2, 2, 5, 1), sessions(only, 0, 2, 4, 0))
	wantRows[ruapost.TLSFailure](t, s, gs[0].ID, map[string]int64{form(failure(1)): 3, form(failure(2)): 2})
	wantRows[ruapost.TLSFailure](t, s, gs[1].ID, map[string]int64{form(failure(1)): 2, form(failure(2)): 2})

	// A session that counts makes it a group like any other.
	recordSessions(t, s, session("example.net"), session("example.net", failure(1)), only)
	wantGroups(t, groupsOf(t, other, "example.net"), sessions(only, 2, 2, 7, 1))
}

// A group whose total is zero is sealed, read and dropped like others.
func testUncountedAlone(t *testing.T, d *data) {
	s, other := d.store(t), d.store(t)
	se := uncounted("example.com", failure(1), failure(2))
	recordSessions(t, s, se, uncounted("dropped.example", failure(1)))
	r := report("r1", groupsOf(t, s, "example.com")...)
	seal(t, other, r)
	wantGroups(t, r.Groups, sessions(se, 0, 2, 2, 0))
	wantReports(t, s, *r)
	recordSessions(t, s, se)
	late := groupsOf(t, other, "example.com")
	wantGroups(t, late, sessions(se, 0, 2, 2, 0))
	wantRows[ruapost.TLSFailure](t, s, r.Groups[0].ID, map[string]int64{form(failure(1)): 1, form(failure(2)): 1})
	if err := s.DropRows(t.Context(), r.Groups); err != nil {
		t.Fatal(err)
	}
	wantRows[ruapost.TLSFailure](t, s, r.Groups[0].ID, nil)
	if err := s.Drop(t.Context(), slices.Concat(late, groupsOf(t, s, "dropped.example"))); err != nil {
		t.Fatal(err)
	}
	wantRows[ruapost.TLSFailure](t, s, late[0].ID, nil)
	wantGroups(t, groups(t, other))
	wantReports(t, other, *r)
}
