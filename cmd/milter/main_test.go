package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"ruapost/config"
)

// All that the configuration says about messages reaches their judgement, at the start
// and at a reload alike.
func TestInboundConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ruapost.toml")
	const text = `
[milter]
mode = "trust"
trusted_authserv_ids = ["mx.example"]
trusted_sealers = ["lists.example"]
enforce = "reject"
quarantine = "header"
temperror = "defer"
discovery = "psl"
report_on = "all"

[reporter]
min_interval = "4h"

[[override]]
source = "192.0.2.0/24"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	c, err := inboundConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if c.MinInterval != 4*time.Hour {
		t.Errorf("MinInterval is %v", c.MinInterval)
	}
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not set", v.Type().Field(i).Name)
		}
	}
}
