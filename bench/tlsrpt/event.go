package main

import (
	"fmt"
	"strings"
)

// maxDomains is half of what the store takes of a day's unknown domains.
const maxDomains = 25_000

// shapes are what Postfix 3.11 tells of sessions with a domain, those of one policy
// together: else the domain would change its policy with each. D is the domain.
var shapes = [][]string{
	{
		`{"policy-type":2,"policy-domain": "D","policy-string":["version: STSv1","mode: enforce","mx: mx1.D","mx: *.D","max_age: 604800"],"mx-host":["mx1.D","*.D"],"t":0,"f":0}`,
		`{"policy-type":2,"policy-domain": "D","policy-string":["version: STSv1","mode: enforce","mx: mx1.D","mx: *.D","max_age: 604800"],"mx-host":["mx1.D","*.D"],"failure-details":[` +
			`{"c":205,"s": "192.0.2.25","n": "mx1.D","h": "250-mx-selfsigned.D\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME","r": "198.51.100.22","f": "self-signed_certificate"}],"t":1,"f":1}`,
	}, {
		`{"policy-type":9,"policy-domain": "D","t":0,"f":0}`,
		`{"policy-type":9,"t":0,"f":0}`,
		`{"policy-type":9,"policy-domain": "D","failure-details":[` +
			`{"c":205,"s": "192.0.2.25","n": "mx.D","h": "250-mx-breaktls.D\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME","r": "198.51.100.26","f": "tls-handshake-failure"}],"t":1,"f":1}`,
	}, {
		`{"policy-type":1,"policy-domain": "mx.D","policy-string":["3 1 1 07A73D2A36AEA38E6BF9DEBDAA9466E0F44C311A2DB73F5B4BD98DCC627E46B6"],"t":0,"f":0}`,
		`{"policy-type":1,"policy-domain": "mx.D","policy-string":["3 1 1 07A73D2A36AEA38E6BF9DEBDAA9466E0F44C311A2DB73F5B4BD98DCC627E46B6"],"failure-details":[` +
			`{"c":203,"s": "192.0.2.25","n": "mx.D","h": "250-mx-good.D\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME","r": "198.51.100.21"}],"t":1,"f":1}`,
	}, {
		`{"policy-type":2,"policy-domain": "D","mx-host":["mx.D"],"t":0,"f":0}`,
		`{"policy-type":2,"policy-domain": "D","mx-host":["mx.D"],"failure-details":[` +
			`{"c":201,"s": "192.0.2.25","n": "mx.D","h": "250-mx-nostarttls.D\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250 8BITMIME","r": "198.51.100.24"}],"t":1,"f":1}`,
		`{"policy-type":2,"policy-domain": "D","mx-host":["mx.D"],"failure-details":[` +
			`{"c":202,"s": "192.0.2.25","n": "mx.D","h": "250-mx-othername.D\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250 8BITMIME","r": "198.51.100.27"}],"t":1,"f":1}`,
	},
}

// events returns the datagrams that are sent, each about one session.
func events(domains int) (datagrams [][]byte) {
	for i := range domains {
		domain := fmt.Sprintf("d%05d.example", i)
		for _, policy := range shapes[i%len(shapes)] {
			datagrams = append(datagrams, fmt.Appendf(nil,
				`{"dpv": "1","d": "%s","pr": "v=TLSRPTv1; rua=mailto:tlsrpt@%[1]s","policies":[%s]}`,
				domain, strings.ReplaceAll(policy, "D", domain)))
		}
	}
	return datagrams
}
