package ruapost

import "time"

// Suppression says that some destinations get no reports for a time.
type Suppression struct {
	// Pattern is what it is about: a mail address, a domain with all addresses and URLs
	// of it, or "*." and a domain for all domains below that. Addresses are as in
	// Recipient, domains as ParseDomain gives them.
	Pattern string `json:"pattern"`
	// Since is when it began, Until when it ends; zero if it does not end by itself.
	// One that has ended is kept for a while, so that an address that bounces again is
	// left alone for longer.
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"`
	// Reason is for people: what somebody typed, or what a bounce said.
	Reason string `json:"reason,omitempty"`
	// Bounces counts the bounces that led to it, one after the other; 0 if a person
	// made it.
	Bounces int `json:"bounces,omitempty"`
}

// Active tells whether the suppression is in force at a time. One for good is so even
// before Since: the clock may have been ahead when it was made.
func (s *Suppression) Active(at time.Time) bool {
	return s.Until.IsZero() || !at.Before(s.Since) && at.Before(s.Until)
}
