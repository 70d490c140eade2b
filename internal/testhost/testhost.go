// Package testhost is for tests that need more of the host than Go: what e2e/setup.sh puts
// there, and root in namespaces of their own.
package testhost

import (
	"cmp"
	"fmt"
	"os"
)

// CacheDir is where e2e/setup.sh keeps its folders.
func CacheDir() string {
	return cmp.Or(os.Getenv("RUAPOST_E2E_ROOT"), "/var/cache/ruapost-e2e")
}

// LeaveOut says in one line which tests are left out, and why. Where RUAPOST_E2E=require
// forbids that it returns the reason, with which they must fail.
func LeaveOut(tests string, why error) error {
	if os.Getenv("RUAPOST_E2E") == "require" {
		return fmt.Errorf("%w; RUAPOST_E2E=require", why)
	}
	fmt.Println(tests, "left out:", why)
	return nil
}
