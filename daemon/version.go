package daemon

import (
	"runtime"
	"runtime/debug"

	"ruapost"
)

// buildVersion tells which build this is: its version, the commit it was made of, with "+dirty"
// if files were changed since, and the Go that made it. There is no commit if it was built
// from sources without a repository.
func buildVersion(build *debug.BuildInfo) string {
	var commit, dirty string
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = "commit " + s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if commit != "" {
		commit += dirty + ", "
	}
	return ruapost.Version + " (" + commit + runtime.Version() + ")"
}

// buildInfo is what the program knows of its own build; it is empty if that is nothing.
func buildInfo() *debug.BuildInfo {
	if build, ok := debug.ReadBuildInfo(); ok {
		return build
	}
	return &debug.BuildInfo{}
}
