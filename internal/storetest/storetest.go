// Package storetest is the suite of tests that every store passes, in the words of
// the flows that use one: evaluations and sessions go in, groups and rows come out,
// and reports stand in an outbox until they are done. A store's own tests call Run
// and add what is about its files, locks and processes.
//
// # What is asked of a store
//
// Several processes have the store open at the same time: what a call has done when
// it returns nil is seen by every other at once.
//
// A record call that returns nil has recorded. One that returns an error, because
// its context ended, has recorded each evaluation or session once or not at all;
// that is certain when Close has returned. Totals are exact whatever else is left
// out: rows whose JSON form has up to 4 KiB are listed, larger ones may be counted
// only, and from 1 MiB on must be. Policies of 4 KiB, groups of 5,000 rows and days
// of 2,000 groups are kept whole.
//
// Which domains are known, see [ruapost.Evaluation], is decided when an evaluation is
// recorded: what a call has made known that returned before is known to it, whichever
// process made it. Thirty days and ninety are meant to a day.
//
// A record call with a position has recorded its sessions and moved the position, or
// neither; but a position finds no room if there are 64 sources already. MTA-STS policies
// whose JSON form has up to 40 KiB are kept, 2,000 of them and 200 below a registered
// name; larger ones may be refused, and from 1 MiB on must be.
//
// Reports come in the order of their IDs' octets. What changes a report or a suppression is
// as if it ran alone, however many wait at the same time, in whatever process: no change is
// lost, and one that fails has done nothing and harms no other. Suppressions whose JSON form
// has up to 700 octets are kept whole, 2,000 of them; of larger ones the reason may be cut,
// and from 1 MiB on must be; a pattern of that size is an error. There is room for a hundred
// counters.
//
// Daily totals of 2,000 domains of a day and kind are kept by name.
//
// Any other call that returns nil has done what it says. One whose context ended
// returns the context's error and may or may not have done it, but never half of
// what must go together: a report is stored if and only if its groups are taken.
// Nothing is ever out of reach: what an interrupted call has not deleted, the same
// steps of a next run delete.
package storetest

import (
	"testing"

	"ruapost/inbound"
	"ruapost/outbound"
	"ruapost/reporting"
	"ruapost/totals"
)

// Store is what the flows ask of a store, and the end of it.
type Store interface {
	inbound.Recorder
	outbound.Recorder
	reporting.Store
	outbound.DestinationRecorder
	outbound.PolicyStore
	outbound.PositionRecorder
	totals.Store
	// Close records what still waits and ends this access to the store; calls fail
	// from then on. It may be called again.
	Close() error
}

// Open returns a new access to the store whose data is in the folder dir, which is
// empty the first time. Other accesses to it may be open. It ends the test if it
// fails.
type Open func(t *testing.T, dir string) Store

// Run tests the stores that open returns.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *data)
	}{
		{"empty", testEmpty},
		{"merge/within a call", testMergeWithinACall},
		{"merge/between calls", testMergeBetweenCalls},
		{"merge/over a restart", testMergeOverRestart},
		{"merge/two processes", testMergeTwoProcesses},
		{"optional evaluations", testOptional},
		{"known/by a pass", testKnownByPass},
		{"known/by a destination", testKnownByDestination},
		{"known/reports", testKnownReports},
		{"known/days", testKnownDays},
		{"known/in order", testKnownInOrder},
		{"known/over a restart", testKnownOverRestart},
		{"known/optional", testKnownAndOptional},
		{"known/hostile", testKnownHostile},
		{"known/ended", testKnownEnded},
		{"totals of sessions", testSessionTotals},
		{"uncounted", testUncounted},
		{"uncounted/alone", testUncountedAlone},
		{"policies/none", testSTSNone},
		{"policies/every field", testSTSEveryField},
		{"policies/replaced", testSTSReplaced},
		{"policies/pages", testSTSPages},
		{"policies/many", testSTSMany},
		{"policies/delete", testSTSDelete},
		{"policies/version", testSTSVersion},
		{"policies/concurrent", testSTSConcurrent},
		{"policies/ended", testSTSEnded},
		{"policies/hostile", testSTSHostile},
		{"position", testPosition},
		{"position/without sessions", testPositionWithoutSessions},
		{"position/of many", testPositionOfMany},
		{"position/bounds", testPositionBounds},
		{"position/concurrent", testPositionConcurrent},
		{"position/ended", testPositionEnded},
		{"position/hostile", testPositionHostile},
		{"windows", testWindows},
		{"windows/lengths", testIntervals},
		{"windows/lengths before", testIntervalsBefore},
		{"windows/lengths apart", testIntervalsApart},
		{"groups/before", testGroupsBefore},
		{"groups/order", testGroupsOrder},
		{"groups/policies apart", testPoliciesApart},
		{"groups/kinds apart", testKindsApart},
		{"groups/domains that begin alike", testDomainsThatBeginAlike},
		{"rows/results apart", testResultsApart},
		{"rows/every field", testRowsEveryField},
		{"rows/overlong", testOverlongRow},
		{"rows/chunks", testRowsInChunks},
		{"rows/while others record", testRowsWhileOthersRecord},
		{"rows/stopped early", testRowsStoppedEarly},
		{"caller keeps its values", testCallerKeepsItsValues},
		{"seal/totals as sealed", testSealTotals},
		{"seal/twice", testSealTwice},
		{"seal/part", testSealPart},
		{"seal/restart", testSealRestart},
		{"seal/two reporters", testTwoReporters},
		{"seal/identifiers are not used again", testGroupIDsAreNew},
		{"drop rows", testDropRows},
		{"drop rows/interrupted", testDropRowsInterrupted},
		{"drop", testDrop},
		{"drop/interrupted", testDropInterrupted},
		{"reports/every field", testReportsEveryField},
		{"reports/states", testReportStates},
		{"reports/order", testReportsOrder},
		{"reports/many", testReportsMany},
		{"reports/stopped early", testReportsStoppedEarly},
		{"reports/one", testReportOne},
		{"reports/several at once", testPutReports},
		{"reports/update", testUpdateReport},
		{"reports/update refused", testUpdateReportRefused},
		{"reports/update panics", testUpdateReportPanics},
		{"reports/update concurrent", testUpdateReportConcurrent},
		{"reports/update against put", testUpdateReportAgainstPut},
		{"reports/update ended", testUpdateReportEnded},
		{"suppressions", testSuppressions},
		{"suppressions/every field", testSuppressionsEveryField},
		{"suppressions/many", testSuppressionsMany},
		{"suppressions/size", testSuppressionSize},
		{"suppressions/concurrent", testSuppressionsConcurrent},
		{"suppressions/panics", testSuppressionPanics},
		{"tallies/of groups", testTalliesOfGroups},
		{"tallies/added", testTalliesAdded},
		{"tallies/many", testTalliesMany},
		{"tallies/hostile", testTalliesHostile},
		{"tallies/concurrent", testTalliesConcurrent},
		{"secret", testSecret},
		{"counts", testCounts},
		{"counts/names", testCountNames},
		{"counts/concurrent", testCountsConcurrent},
		{"context/ended before recording", testContextEndedRecording},
		{"context/ended before", testContextEndedBefore},
		{"context/ends during reading", testContextEndsReading},
		{"context/ends during sealing", testContextEndsSealing},
		{"concurrent/recorders and reporters", testConcurrent},
		{"concurrent/reports", testConcurrentReports},
		{"close", testClose},
		{"close/calls under way", testCloseUnderWay},
		{"hostile/evaluations", testHostileEvaluations},
		{"hostile/sessions", testHostileSessions},
		{"hostile/reports", testHostileReports},
		{"hostile/policy size", testHostilePolicySize},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(t, &data{open: open, dir: t.TempDir()})
		})
	}
}

// data is what the accesses of one test to the store have in common.
type data struct {
	open Open
	dir  string
}

// store returns an access that lasts until the test ends, or is closed before.
func (d *data) store(t *testing.T) Store {
	t.Helper()
	s := d.open(t, d.dir)
	t.Cleanup(func() { mustClose(t, s) })
	return s
}

func mustClose(t *testing.T, s Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
