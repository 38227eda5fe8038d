//go:build tools

// Package tools names the programs of other modules that tests/kubernetes.sh --e2e builds as they are.
package tools

import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
