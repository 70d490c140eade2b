package inbound

import (
	"ruapost/authres"
)

func claimsToBe(value, authservID string) bool { return authres.ClaimsToBe(value, authservID) }

// authenticationResults returns the parts of the Authentication-Results field's
// value, to be joined by semicolons (RFC 8601 2.2). All values in it are our own
// words, domain names or quoted.
func (j *judgement) authenticationResults(authservID string) []string {
	f := authres.Field{ID: authservID, Results: []authres.Result{j.spfAuthres()}}
	for i := range j.dkim {
		f.Results = append(f.Results, j.dkim[i].authres())
	}
	if len(j.dkim) == 0 {
		f.Results = append(f.Results, authres.Result{Method: "dkim", Value: "none"})
	}
	f.Results = append(f.Results, j.dmarcAuthres())
	return []string{f.Format()}
}

func (j *judgement) spfAuthres() authres.Result {
	r := authres.Result{Method: "spf", Value: string(j.spf.Result)}
	name := "mailfrom"
	if j.spf.Helo {
		name = "helo"
	}
	add(&r, "smtp", name, j.spf.Domain)
	return r
}

func (s *signature) authres() authres.Result {
	r := authres.Result{Method: "dkim", Value: string(s.result), Reason: s.reason}
	add(&r, "header", "d", s.domain)
	add(&r, "header", "s", s.selector)
	add(&r, "header", "a", s.algorithm)
	add(&r, "header", "b", s.b) // RFC 6008
	return r
}

func (j *judgement) dmarcAuthres() authres.Result {
	r := authres.Result{Method: "dmarc", Value: string(j.result), Reason: j.problem}
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
