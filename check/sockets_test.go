package check

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"ruapost/socketmap"
)

func TestSockets(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(w *world, policy, events string)
		want   []string
	}{
		"none": {func(w *world, policy, events string) {
			w.remove(policy)
			w.remove(events)
		}, []string{
			"fault: policy socket ... there is none ... enable --now ruapost-policy.socket",
			"fault: TLSRPT socket ... there is none ... enable --now ruapost-tlsrpt.socket",
		}},
		"no folder": {func(w *world, policy, _ string) {
			if err := os.RemoveAll(filepath.Dir(policy)); err != nil {
				w.t.Fatal(err)
			}
		}, []string{"fault: milter socket ... there is none", "fault: policy socket ... there is none", "fault: TLSRPT socket ... there is none"}},
		"left behind": {func(w *world, policy, events string) {
			w.leave("unix", policy)
			w.leave("unixgram", events)
		}, []string{"fault: policy socket ... nobody listens", "fault: TLSRPT socket ... nobody listens"}},
		"files": {func(w *world, policy, events string) {
			for _, path := range []string{policy, events} {
				w.remove(path)
				if err := os.WriteFile(path, nil, 0o666); err != nil {
					w.t.Fatal(err)
				}
			}
		}, []string{"fault: policy socket ... is not a socket", "fault: TLSRPT socket ... is not a socket"}},
		"mixed up": {func(w *world, policy, events string) {
			w.remove(policy)
			w.remove(events)
			w.listen(filepath.Base(events))
			w.listenEvents(filepath.Base(policy))
		}, []string{"fault: policy socket ... wrong type", "fault: TLSRPT socket ... wrong type"}},
		"folder that Postfix may not enter": {func(w *world, policy, _ string) {
			w.mode(filepath.Dir(policy), 0o700)
		}, []string{
			"fault: milter socket ... user nobody may not enter DIR/queue/run/ruapost",
			"fault: policy socket ... user nobody may not enter DIR/queue/run/ruapost ( ... mode 0700) => ... chmod o+x DIR/queue/run/ruapost",
			"fault: TLSRPT socket ... user nobody may not enter DIR/queue/run/ruapost",
		}},
		"socket that Postfix may not write to": {func(w *world, policy, _ string) {
			w.mode(policy, 0o664) // readable is not enough
		}, []string{"fault: policy socket ... user nobody may not write to DIR/queue/run/ruapost/policy.sock ( ... mode 0664) => ... SocketGroup= ... ruapost-policy.socket"}},
		"link out of the chroot": {func(w *world, policy, _ string) {
			if err := errors.Join(os.Rename(filepath.Dir(policy), w.path("away")), os.Symlink(w.path("away"), filepath.Dir(policy))); err != nil {
				w.t.Fatal(err)
			}
		}, []string{"fault: milter socket ... a symbolic link", "fault: policy socket ... a symbolic link leads to DIR/away/policy.sock, outside the chroot", "fault: TLSRPT socket ... a symbolic link"}},
		"link to elsewhere, no chroot": {func(w *world, policy, _ string) {
			w.chroot, w.masterCf = service+"/chroot = n\n", "smtp/inet/chroot = n\nsmtp/inet/command = smtpd\n"
			w.mode(w.dir, 0o755)
			if err := errors.Join(os.Rename(filepath.Dir(policy), w.path("away")), os.Symlink(w.path("away"), filepath.Dir(policy))); err != nil {
				w.t.Fatal(err)
			}
		}, nil},
		"queue directory by another name": {func(w *world, policy, _ string) {
			if err := os.Symlink(w.queue, w.path("alias")); err != nil {
				w.t.Fatal(err)
			}
			w.cfg.TLSPolicy.Listen[0].Address = w.path("alias/run/ruapost/policy.sock")
		}, nil},
		"somebody else's": {func(w *world, _, _ string) { w.reply = socketmap.OK("secure") }, []string{`fault: policy socket ... the answer for localhost is "OK secure"; expected NOTFOUND`}},
		"in trouble":      {func(w *world, _, _ string) { w.reply = socketmap.Temp("no idea") }, []string{`fault: policy socket ... "TEMP no idea"`}},
		"short queue": {func(w *world, _, _ string) { w.write("qlen", "10\n") }, []string{
			"warning: net.unix.max_dgram_qlen = 10 ... echo net.unix.max_dgram_qlen = 512 > /etc/sysctl.d/",
		}},
		"no queue": {func(w *world, _, _ string) { w.host.QueueLength = "/nonexistent" }, []string{"warning: net.unix.max_dgram_qlen cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(w, w.cfg.TLSPolicy.Listen[0].Address, w.cfg.TLSPolicy.TLSRPT.Address)
			w.expect(w.check(), tt.want...)
		})
	}
}

func (w *world) remove(path string) {
	w.t.Helper()
	if err := os.Remove(path); err != nil {
		w.t.Fatal(err)
	}
}

// leave puts a socket in the place of another, as a program does that was killed.
func (w *world) leave(network, path string) {
	w.t.Helper()
	w.remove(path)
	fd, err := syscall.Socket(syscall.AF_UNIX, map[string]int{"unix": syscall.SOCK_STREAM, "unixgram": syscall.SOCK_DGRAM}[network], 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		w.t.Fatal(err)
	}
	syscall.Close(fd)
	w.mode(path, 0o666)
}

// A daemon that is stuck is found out in bounded time, as Postfix would wait 100 s.
func TestSilentDaemon(t *testing.T) {
	w := newWorld(t)
	path := w.cfg.TLSPolicy.Listen[0].Address
	w.remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.mode(path, 0o666)
	w.postconf()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	w.expect(TLSPolicy(ctx, w.cfg, w.host), "fault: policy socket ... no answer in time")
	if took := time.Since(began); took > queryLimit {
		t.Errorf("took %v", took)
	}
}

// unprivileged runs f as a user who has no more rights than others; for tests that root
// runs.
func unprivileged(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks it: the thread ends with this goroutine
		const nobody = 65534
		// Only of this thread, and refused to who is no root.
		syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0)
		syscall.RawSyscall(syscall.SYS_SETRESGID, nobody, nobody, nobody)
		syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody)
		f()
	}()
	<-done
}

// What cannot be seen without root is neither fine nor a fault, and not absent.
func TestUnprivileged(t *testing.T) {
	w := newWorld(t)
	w.mode(w.dir, 0o755)
	w.settings["mail_owner"] = "root" // who may do all
	w.mode(w.cfg.TLSPolicy.Listen[0].Address, 0)
	w.mode(w.cfg.TLSPolicy.TLSRPT.Address, 0)
	w.mode(w.path("ca.pem"), 0)
	w.mode(w.path("smtp"), 0)
	w.cfg.Store.Path = w.path("store/ruapost.db")
	if err := os.Mkdir(w.path("store"), 0o555); err != nil {
		t.Fatal(err)
	}
	w.postconf()
	look := func() (findings []Finding) {
		unprivileged(func() { findings = TLSPolicy(t.Context(), w.cfg, w.host) })
		return findings
	}
	others := []string{
		"warning: policy socket ... as root",
		"warning: smtp_tls_CAfile cannot be read as this user",
		"warning: whether Postfix is built with TLSRPT cannot be told: ... permission denied",
	}
	store := "fault: the store's folder DIR/store: user ... may not write to it"
	w.expect(look(), append(others, "warning: TLSRPT socket ... may not connect to it", store)...)

	w.mode(w.path("store"), 0o777)
	w.write("store/ruapost.db", "")
	w.mode(w.cfg.Store.Path, 0)
	store = "fault: DIR/store/ruapost.db: user ... may not write to it"
	w.mode(w.sockets, 0)
	defer w.mode(w.sockets, 0o755)
	w.expect(look(), append(append([]string{"warning: milter socket ... cannot see it ... as root"}, others...), "warning: TLSRPT socket ... cannot see it", store)...)
}

// path_resolution(7): the first class that a user is in decides, even if another one
// would permit more.
func TestPermissions(t *testing.T) {
	postfix := &account{name: "postfix", group: "postfix", uid: 100, gids: []uint32{200, 300}}
	for _, tt := range []struct {
		mode, uid, gid uint32
		may            permission
		can            bool
		mend           string
	}{
		{0o660, 100, 1, mayWrite, true, ""},
		{0o066, 100, 200, mayWrite, false, "    chmod u+w /s"},
		{0o660, 1, 200, mayWrite, true, ""},
		{0o660, 1, 300, mayWrite, true, ""},
		{0o606, 1, 200, mayWrite, false, "    chmod g+w /s"},
		{0o666, 1, 1, mayWrite, true, ""},
		{0o2750, 1, 200, mayPass, true, ""},
		{0o2740, 1, 200, mayPass, false, "    chmod g+x /s"},
		{0o2750, 1, 4000000000, mayPass, false, "    usermod -a -G 4000000000 postfix\n    postfix reload"},
		{0o2750, 1, 0, mayPass, false, "    chmod o+x /s"},
		{0o700, 1, 4000000000, mayPass, false, "    chmod o+x /s"},
		{0o660, 1, 0, mayWrite, false, "    chgrp postfix /s\n    chmod g+w /s"},
	} {
		st := &syscall.Stat_t{Mode: tt.mode, Uid: tt.uid, Gid: tt.gid}
		if can := postfix.can(st, tt.may); can != tt.can {
			t.Errorf("%o %d:%d: can = %v", tt.mode, tt.uid, tt.gid, can)
		}
		if tt.can {
			continue
		}
		if mend := postfix.mend("/s", st, tt.may); mend != tt.mend {
			t.Errorf("%o %d:%d: %q; want %q", tt.mode, tt.uid, tt.gid, mend, tt.mend)
		}
	}
	if root := (&account{}); !root.can(&syscall.Stat_t{Mode: 0, Uid: 1}, mayWrite) {
		t.Error("root may not")
	}
}

func TestWay(t *testing.T) {
	for _, tt := range []struct {
		from, file string
		want       int
	}{{"/", "/a/b/s", 4}, {"/a", "/a/b/s", 3}, {"/", "/s", 2}} {
		got := way(tt.from, tt.file)
		if len(got) != tt.want || got[0] != tt.from || got[len(got)-1] != tt.file {
			t.Errorf("way(%s, %s) = %q", tt.from, tt.file, got)
		}
	}
}

// What setup is about to put into main.cf is looked at before it is there, and nothing but
// what makes Postfix defer mail keeps it out.
func TestDeferrals(t *testing.T) {
	w := newWorld(t)
	planned := maps.Clone(w.settings)
	for _, name := range []string{"smtp_tls_policy_maps", "smtp_dns_support_level", "smtp_tls_CAfile", "smtp_tls_security_level"} {
		w.settings[name] = ""
	}
	deferrals := func() []Finding { w.postconf(); return Deferrals(t.Context(), w.cfg, w.host) }
	if len(deferrals()) == 0 {
		t.Error("main.cf as it is does not ask the daemon, and has no authorities")
	}
	w.host.Planned = map[string]string{
		"smtp_tls_policy_maps": planned["smtp_tls_policy_maps"], "smtp_dns_support_level": "dnssec", "smtp_tls_CAfile": planned["smtp_tls_CAfile"],
	}
	w.expect(deferrals())
	w.expect(Milter(t.Context(), w.cfg, w.host))
	w.expect(Events(t.Context(), w.cfg, w.host))
	for _, socket := range []string{"policy.sock", "milter.sock", "tlsrpt.sock"} {
		if err := os.Remove(filepath.Join(w.sockets, socket)); err != nil {
			t.Fatal(err)
		}
	}
	w.expect(deferrals(), "fault: policy socket ... there is none ... ruapost-policy.socket")
	w.expect(Milter(t.Context(), w.cfg, w.host), "fault: milter socket ... there is none ... ruapost-milter.socket")
	w.expect(Events(t.Context(), w.cfg, w.host), "fault: TLSRPT socket ... there is none")
}
