package web

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ruapost"
	"ruapost/config"
	"ruapost/reporting"
)

// doneText is what a page says of the button that led there.
var doneText = map[string]string{
	"resend":     "The report goes out once more with the next run; the timer starts one every hour.",
	"suppress":   "Suppressed: nothing is sent there.",
	"unsuppress": "Removed: reports are sent there again.",
}

// button returns the page of a button.
func (h *Handler) button(press func(*http.Request) (redirect string, err error)) func(*http.Request) (*answer, error) {
	return func(r *http.Request) (*answer, error) {
		if h.ReadOnly {
			return nil, errReadOnly
		}
		if err := r.ParseForm(); err != nil {
			return nil, httpError{http.StatusBadRequest, "This form cannot be read."}
		}
		h.acting.Lock()
		defer h.acting.Unlock()
		to, err := press(r)
		h.surveys.outdate()
		return &answer{redirect: to}, err
	}
}

// resend is for all recipients of a report, or the one that the form names.
func (h *Handler) resend(r *http.Request) (string, error) {
	rep, err := h.findReport(r)
	if err != nil {
		return "", err
	}
	if err := h.Reporter.Resend(r.Context(), rep.ID, r.PostForm.Get("address")); err != nil {
		return "", told(err)
	}
	return "/report/" + rep.ID + "?done=resend", nil
}

// told makes an error of a button's one for whoever pressed it, unless fail knows it.
func told(err error) error {
	if errors.Is(err, reporting.ErrBusy) || errors.Is(err, ruapost.ErrNoReport) {
		return err
	}
	return httpError{http.StatusConflict, ruapost.Clean(err.Error(), 500)}
}

func (h *Handler) suppress(r *http.Request) (string, error) {
	pattern, err := reporting.ParsePattern(strings.TrimSpace(r.PostForm.Get("pattern")))
	if err != nil {
		return "", httpError{http.StatusBadRequest, ruapost.Clean(err.Error(), 500)}
	}
	var until time.Time
	if period := strings.TrimSpace(r.PostForm.Get("for")); period != "" {
		d, err := config.ParseTime(period)
		if err != nil || d <= 0 {
			return "", httpError{http.StatusBadRequest, `The time must be such as "30d" or "12h", or empty.`}
		}
		until = time.Now().UTC().Add(d).Truncate(time.Second)
	}
	if err := h.Reporter.Suppress(r.Context(), pattern, until, r.PostForm.Get("reason")); err != nil {
		return "", told(err)
	}
	return "/suppressions?" + url.Values{"done": {"suppress"}, "q": {pattern}}.Encode(), nil
}

func (h *Handler) unsuppress(r *http.Request) (string, error) {
	pattern := r.PostForm.Get("pattern")
	was, err := h.Reporter.Unsuppress(r.Context(), pattern)
	if err == nil && !was {
		err = httpError{http.StatusNotFound, "That is not suppressed any more."}
	}
	if err != nil {
		return "", err
	}
	return "/suppressions?done=unsuppress", nil
}
