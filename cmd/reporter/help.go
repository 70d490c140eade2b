package main

import "ruapost/daemon"

const program = "ruapost-reporter"

// usage fits a screen together with what daemon.Command prints about the flags.
const usage = `[COMMAND]

  send [--now] [--domain D] [--dry-run]  send the reports that are due
  list [-json] [DOMAIN|REPORT-ID]        what is recorded, waiting and sent
  show [-mail] [-json] REPORT-ID|DOMAIN  reports as their receivers see them
  preview DOMAIN                         the reports that it would get now
  history [-json] [DOMAIN|REPORT-ID]     what became of reports, newest last
  resend REPORT-ID [ADDRESS]             send a report once more, unchanged
  forget DOMAIN                          delete what is recorded about a domain
  suppress list|add|remove               who gets no reports; see suppress -help
  bounce [ADDRESS...]                    take a bounce from standard input
  setup [--apply|--undo]                 put ruapost beside this host's Postfix
  check [-json]                          whether receivers take our reports
  dkim-keygen FILE                       make a key to sign reports with
  store stats|check|compact|export|import   look after the shared file
  web [-hash USER]                       pages for a browser

Example: ruapost-reporter show example.com      COMMAND -help says more.`

// cli reads the arguments of the commands.
var cli = daemon.Commands{Program: program, Help: help}

// help is what COMMAND -help says. It fits a screen, tells of every option and has an
// example.
var help = map[string]struct{ Syntax, Text string }{
	"send": {"send [--now] [--no-spread] [--domain D] [--dry-run]", `Send the reports of all days, or hours, that are over, and those that wait for
another try. The timer does so every hour. They are spread over the time that
reporter.spread says, so a run takes up to 45 minutes; one that is stopped
loses nothing.

  --no-spread  send all at once
  --now        also report what is not over yet; all at once
  --domain D   only reports about the domain D; all at once
  --dry-run    say what would be sent and to whom, after asking the DNS; send
               nothing

Example: ruapost-reporter send --now --dry-run`},
	"list": {"list [-json] [-n N] [DOMAIN|REPORT-ID]", `List what is recorded, what waits to be sent, and the reports that were done in
the last day. "sent" is what sendmail, or an https destination, has taken. "not
agreed" is up to the destination: it does not take reports about the domain.

  -n N   at most so many, 200 by default, those that need an eye first; 0 lists
         all
  -json  one JSON object: reports, left_out, counters

Example: ruapost-reporter list example.com`},
	"show": {"show [-mail] [-json] REPORT-ID|DOMAIN", `Show a report, or all reports about a domain, as their receivers see them. The
first ten digits of a REPORT-ID are mostly enough: the first eight are the time
it was made.

  -mail  also the mails that wait in the outbox
  -json  a JSON object for each report

Example: ruapost-reporter show -mail example.com`},
	"preview": {"preview DOMAIN", `Show what is recorded about a domain as the reports that would be sent of it
now.

Example: ruapost-reporter preview example.com`},
	"history": {"history [-json] [-n N] [DOMAIN|REPORT-ID]", `List what became of the reports that were made, recipient by recipient, by the
time of the last try, newest last. Reports that are done are kept for as long as
reporter.keep says.

  -n N   at most so many reports, 200 by default; 0 lists all
  -json  a JSON object for each report

Example: ruapost-reporter history -n 20`},
	"resend": {"resend REPORT-ID [ADDRESS]", `Have a report sent once more, with the same identifier and content: to all who
were to get it and are not suppressed, or to one ADDRESS of them. It goes out
with the next run, or at once with "send --domain D".

Example: ruapost-reporter resend 692f0a1b2c dmarc@example.com`},
	"forget": {"forget DOMAIN", `Delete what is recorded about a domain and the reports about it, also those that
wait to be sent. Nobody is asked, and nothing brings it back.

Example: ruapost-reporter forget example.com`},
	"suppress": {"suppress list [-json] | add [-for TIME] [-reason TEXT] PATTERN | remove PATTERN", `Have nothing sent to a mail address, a domain with all its addresses and URLs,
or "*." and a domain, which is all domains below it. Addresses whose mail comes
back are suppressed without you if reporter.bounce_maildir is set.

  list            what is suppressed, or was and is still remembered
    -json         a JSON object for each
  add PATTERN     suppress
    -for TIME     for so long, as 30d or 12h; else until it is removed
    -reason TEXT  why, for the list
  remove PATTERN  send there again

Example: ruapost-reporter suppress add -for 30d dmarc@example.com`},
	"bounce": {"bounce [ADDRESS...]", `Take a mail that has come to the envelope sender of a report from standard
input: Postfix runs this for the addresses that reporter.bounce_maildir is
about. ADDRESS is what the mail has come to. If it says that a report was not
delivered, its recipient is suppressed for some time. It is filed in the Maildir
whatever it says. What is printed is who was suppressed, for Postfix's log.

The exit status is 75 (EX_TEMPFAIL) if the mail is to come again: the store or
the Maildir cannot be used, or reporter.bounce_maildir is not set. Postfix then
keeps it in its queue.

Example: argv=/usr/local/sbin/ruapost-reporter bounce -- ${recipient}`},
	"setup": {"setup [--apply] [--replace NAME] [-postfix DIR] [-json] | --undo [-postfix DIR] [-json]", `Look at Postfix on this host, and say what main.cf and ruapost.toml should have,
each line with its reason. Other software that is there keeps working.

  --apply         make the changes; what was there before is kept. A line that
                  would have mail wait, since nobody answers yet, is left out
  --undo          put back what was there, but for what was changed since
  --replace NAME  take the place of opendmarc, postfix-tlspol, mta-sts-resolver
                  or tlsrpt-reporter; several with commas between
  -postfix DIR    the Postfix whose main.cf is in DIR
  -json           one JSON object: findings, changes; of --undo: restored,
                  kept, left

The exit status is 1 if there is something to do that takes somebody who knows
this host, and 0 if not.

Example: ruapost-reporter setup --apply`},
	"check": {"check [-json]", `Look for what keeps receivers from taking our reports, and say how to mend it
and what the DNS should have. The exit status is 1 if there are faults.

  -json  one JSON object: findings, records

Example: ruapost-reporter check`},
	"dkim-keygen": {"dkim-keygen [-selector S] [-domain D] FILE", `Make a key to sign reports with in a new FILE, and say what to publish and to
configure. Made by root, it can be read by the group ruapost.

  -selector S  the selector, by default one with the date
  -domain D    the domain that signs, by default that of reporter.from

Example: ruapost-reporter dkim-keygen /etc/ruapost/dkim.pem`},
	"store": {"store stats|check|compact|export|import", `Look after the file that the programs share, while they run:

  stats    how much it holds
  check    look for faults in it; exit status 1 if there are any
  compact  give back the space of what was deleted
  export   write all it holds to standard output, as JSON lines
  import   read that from standard input into a store that is empty

Example: ruapost-reporter store export >ruapost.jsonl`},
	"web": {"web [-hash USER]", `Show pages for a browser at web.listen, until it is ended: what came in and went
out, what failed, what became of reports, and what the DNS should have.

  -hash USER  read a password from standard input, and print the line of a user
              for web.password_file

Example: ruapost-reporter web -hash anna >>/etc/ruapost/web-passwords`},
}
