package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"ruapost/internal/lab"
)

const (
	version = "v0.0-test"
	// authorities has the certificates of all authorities that the images know: one.
	authorities = "/run/authorities.crt"
	// makeFlags are what is different in the tests when the image is made.
	makeFlags = "--no-print-directory BIN=/run/bin BUILDER=buildah VERSION=" + version + " CA_CERTIFICATES=" + authorities
)

// image is made once for all tests, with the authority that policy hosts have their
// certificates from.
var image struct {
	once sync.Once
	ca   *lab.CA
}

// makeImage has the image of ruapost made.
func makeImage(t *testing.T) *lab.CA {
	t.Helper()
	image.once.Do(func() {
		ca, err := lab.NewCA()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(authorities, ca.PEM(), 0o644); err != nil {
			t.Fatal(err)
		}
		do(t, tree, "make container")
		image.ca = ca
	})
	if image.ca == nil {
		t.Fatal("the image could not be made")
	}
	got := do(t, tree, "podman run --rm --network=none localhost/ruapost ruapost-milter -version")
	if !strings.HasPrefix(got, "ruapost-milter "+version+" (go") {
		t.Errorf("-version: %q", got)
	}
	return image.ca
}

// confined is how the sample runs the daemons; a container must not even have the file
// systems in memory that Podman gives to one with a read-only root.
var confined = []string{
	"run", "--rm", "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL",
	"--security-opt=no-new-privileges", "--network=none", "localhost/ruapost",
}

// Each program runs in the image. Without a configuration file all keys have their
// defaults.
func TestPrograms(t *testing.T) {
	makeImage(t)
	for _, name := range []string{"ruapost-milter", "ruapost-tlspolicy", "ruapost-reporter"} {
		got := run(t, "podman", append(confined, name, "-check")...)
		if !strings.HasSuffix(got, "No mistakes found in the configuration.\n") {
			t.Errorf("%s -check: %q", name, got)
		}
	}
}

// The image is from scratch: it has nothing but what its Containerfile names, all of it
// root's, and says by a number that it is not to run as root.
func TestImage(t *testing.T) {
	makeImage(t)
	const format = "{{.Config.User}}|{{.Config.Entrypoint}}|{{.Config.Cmd}}|{{index .Config.Labels `org.opencontainers.image.version`}}"
	if got := run(t, "podman", "image", "inspect", "-f", format, "localhost/ruapost"); got != "8460:8460|[]|[]|"+version+"\n" {
		t.Errorf("image: %q", got)
	}
	root := strings.TrimSpace(run(t, "podman", "image", "mount", "localhost/ruapost"))
	defer run(t, "podman", "image", "umount", "localhost/ruapost")
	var files []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 || info.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s has owner %d and mode %v", path, owner, info.Mode())
		}
		name, err := filepath.Rel(root, path)
		files = append(files, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	want := []string{
		"etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt",
		"usr/local/sbin/ruapost-milter", "usr/local/sbin/ruapost-reporter", "usr/local/sbin/ruapost-tlspolicy",
		"usr/share/doc/ruapost/LICENSE",
	}
	if diff := gocmp.Diff(want, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
