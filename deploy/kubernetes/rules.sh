#!/usr/bin/env bash
# Writes the PrometheusRule anew from deploy/prometheus/rules/digits.yml; a test compares the two.
set -euo pipefail
cd "$(dirname "$0")"
{
  echo '# Written by deploy/kubernetes/rules.sh.'
  echo 'apiVersion: monitoring.coreos.com/v1'
  echo 'kind: PrometheusRule'
  echo 'metadata: {name: digits-server, labels: {app.kubernetes.io/name: digits-server}}'
  echo 'spec:'
  grep -v '^ *#' ../prometheus/rules/digits.yml | sed 's/^\(.\)/  \1/'
} >components/monitoring/prometheus-rule.yaml
