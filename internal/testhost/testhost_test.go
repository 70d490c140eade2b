package testhost

import (
	"errors"
	"testing"
)

// Nobody may take tests that were left out for tests that have passed.
func TestLeaveOut(t *testing.T) {
	why := errors.New("there is no Postfix")
	for value, fail := range map[string]bool{"require": true, "": false} {
		t.Setenv("RUAPOST_E2E", value)
		if err := LeaveOut("testhost: nothing", why); errors.Is(err, why) != fail {
			t.Errorf("RUAPOST_E2E=%s: %v", value, err)
		}
	}
}
