// Package cmd tests the three programs as they are used at a terminal.
package cmd

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the scripts in testdata, which read like a session at a terminal,
// with the real programs.
func TestScripts(t *testing.T) {
	bin := t.TempDir()
	for _, p := range []string{"milter", "tlspolicy", "reporter"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(bin, "ruapost-"+p), "./"+p).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			return nil
		},
		RequireExplicitExec: true,
	})
}
