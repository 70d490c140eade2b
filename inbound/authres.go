package inbound

import (
	"strconv"
	"strings"

	"ruapost"
	"ruapost/arc"
	"ruapost/authres"
	"ruapost/dmarc"
)

// authResValue returns the Authentication-Results field's value without the blank in
// front. All values in it are our own words, domain names or quoted.
func (j *judgement) authResValue() string {
	f := authres.Field{ID: j.msg.config.AuthservID, Results: []authres.Result{j.spfAuthres()}}
	for i := range j.dkim {
		f.Results = append(f.Results, j.dkim[i].authres())
	}
	switch {
	case j.msg.headerTooLarge():
		f.Results = append(f.Results, authres.Result{Method: "dkim", Value: "policy", Reason: "header too large"})
	case len(j.dkim) == 0:
		f.Results = append(f.Results, authres.Result{Method: "dkim", Value: "none"})
	}
	if j.arc != nil {
		f.Results = append(f.Results, arcAuthres(j.arc))
	}
	f.Results = append(f.Results, j.dmarcAuthres())
	return f.Format()
}

func (j *judgement) spfAuthres() authres.Result {
	r := authres.Result{Method: "spf", Value: string(j.spf.Result)}
	add(&r, "smtp", spfProperty(&j.spf), j.spf.Domain)
	return r
}

// spfProperty is the name of the property that has SPF's identity (RFC 8601 2.7.2).
func spfProperty(r *ruapost.SPFResult) string {
	if r.Helo {
		return "helo"
	}
	return "mailfrom"
}

func (s *signature) authres() authres.Result {
	r := authres.Result{Method: "dkim", Value: string(s.result), Reason: s.reason}
	add(&r, "header", "d", s.domain)
	add(&r, "header", "s", s.selector)
	add(&r, "header", "a", s.algorithm)
	add(&r, "header", "b", s.b) // RFC 6008
	return r
}

// arcAuthres is RFC 8617 10.2.
func arcAuthres(chain *arc.Result) authres.Result {
	r := authres.Result{Method: "arc", Value: string(chain.Status), Reason: chain.Reason}
	if chain.OldestPass > 0 {
		add(&r, "header", "oldest-pass", strconv.Itoa(chain.OldestPass))
	}
	return r
}

func (j *judgement) dmarcAuthres() authres.Result {
	r := authres.Result{Method: "dmarc", Value: string(j.result), Reason: j.problem}
	if j.result == dmarc.ResultFail {
		r.Reason = strings.TrimSuffix("disposition "+j.outcome()+": "+j.reasons(), ": ")
	}
	add(&r, "header", "from", j.author)
	if j.policy != nil {
		add(&r, "policy", "dmarc", string(j.policy.Effective)) // RFC 9989 9.1
	}
	return r
}

// add adds a property if there is a value for it.
func add(r *authres.Result, ptype, name, value string) {
	if value != "" {
		r.Properties = append(r.Properties, authres.Property{Type: ptype, Name: name, Value: value})
	}
}
