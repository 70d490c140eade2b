package outbound

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"ruapost/socketmap"
)

// An answer is fresh for five minutes. Beyond that it is given once more while a new one
// is found, so that no delivery waits; after fifteen it is forgotten.
func TestAnswersAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finds := 0
		takes := 0 * time.Second
		level, trouble := LevelDANE, false
		a := newAnswers(func(_ context.Context, domain string, old *answer) *answer {
			finds++
			time.Sleep(takes)
			v := &verdict{level: level, trouble: trouble, plain: reply(domain, level, nil, false)}
			return &answer{verdict: v, since: time.Now().Unix()}
		})
		defer a.StopAllGoroutines()
		ask := func(wait time.Duration) (Level, time.Duration, int) {
			time.Sleep(wait) // of the test's clock
			began, before := time.Now(), finds
			got, err := a.get(t.Context(), "example.com")
			if err != nil {
				t.Fatal(err)
			}
			waited := time.Since(began)
			time.Sleep(time.Minute / 100)
			synctest.Wait()
			return got.level, waited, finds - before
		}
		for _, step := range []struct {
			name    string
			wait    time.Duration
			publish Level
			takes   time.Duration
			trouble bool
			want    Level
			waits   bool
			finds   int
		}{
			{"first", 0, LevelDANE, 100 * time.Millisecond, false, LevelDANE, true, 1},
			{"fresh", 0, LevelDANEOnly, 100 * time.Millisecond, false, LevelDANE, false, 0},
			{"no longer fresh", freshFor, LevelDANEOnly, 100 * time.Millisecond, false, LevelDANE, false, 1},
			{"what that found", 0, LevelDANEOnly, 0, false, LevelDANEOnly, false, 0},
			{"old, with trouble", freshFor, LevelNone, 100 * time.Millisecond, true, LevelDANEOnly, false, 1},
			{"still trouble", staleFor - freshFor - time.Minute, LevelNone, 100 * time.Millisecond, true, LevelDANEOnly, false, 1},
			{"too old, with trouble", time.Minute, LevelNone, 100 * time.Millisecond, true, LevelNone, true, 1},
			{"that is not found again at once", 0, LevelNone, 0, true, LevelNone, false, 0},
			{"but soon", troubleFor, LevelDANE, 0, false, LevelDANE, false, 1},
			{"much later", time.Hour, LevelDANEOnly, 100 * time.Millisecond, false, LevelDANEOnly, true, 1},
		} {
			level, takes, trouble = step.publish, step.takes, step.trouble
			got, waited, n := ask(step.wait)
			if got != step.want || (waited > 0) != step.waits || n != step.finds {
				t.Errorf("%s: %q after %v with %d finds; want %q, waiting %v, %d finds", step.name, got, waited, n, step.want, step.waits, step.finds)
			}
		}
	})
}

// Who asks at the same time waits for one and the same finding.
func TestAnswersTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finds := 0
		a := newAnswers(func(context.Context, string, *answer) *answer {
			finds++
			time.Sleep(time.Second)
			return &answer{verdict: nothing}
		})
		defer a.StopAllGoroutines()
		for range 100 {
			go a.get(t.Context(), "example.com")
		}
		time.Sleep(2 * time.Second)
		if synctest.Wait(); finds != 1 {
			t.Errorf("%d finds", finds)
		}
	})
}

// A policy is not applied for longer than it may be (RFC 8461 3.3).
func TestAnswerLifetime(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		verdict verdict
		want    time.Duration
	}{
		"no policy":                  {verdict{}, staleFor},
		"trouble":                    {verdict{trouble: true, expires: now.Add(time.Hour)}, troubleFor},
		"a policy for a day":         {verdict{expires: now.Add(24 * time.Hour)}, staleFor},
		"a policy that expires soon": {verdict{expires: now.Add(time.Minute)}, time.Minute},
		"one that has":               {verdict{expires: now.Add(-time.Minute)}, time.Second},
	} {
		if got := (&answer{verdict: &tc.verdict}).lifetime(now); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// A session is judged by the answer that held when it began.
func TestAnswerAt(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	old, fresh := &verdict{level: LevelNone}, &verdict{level: LevelSTS}
	a := &answer{verdict: fresh, since: now.Unix(), before: old}
	if a.at(now.Add(-time.Second)) != old || a.at(now) != fresh || a.at(now.Add(time.Hour)) != fresh {
		t.Error("the wrong verdict")
	}
	a.before = nil
	if a.at(now.Add(-time.Hour)) != fresh {
		t.Error("no verdict")
	}
}

// What most domains have shares one verdict: the memory for 100,000 of them counts.
func TestNothingIsShared(t *testing.T) {
	f := &finding{domain: "example.com", hosts: &noHosts}
	if f.verdict(&Settings{}) != nothing || nothing.plain != socketmap.NotFound() || nothing.tlsrpt != socketmap.NotFound() {
		t.Error("another verdict")
	}
}
