{{- define "talk.labels" -}}
app.kubernetes.io/name: infinite-talk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "talk.selector" -}}
app.kubernetes.io/name: infinite-talk
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "talk.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "talk.engines" -}}
{{- $names := list -}}
{{- range $pool := .Values.pools }}{{ $names = append $names $pool.engine }}{{ end -}}
{{ $names | uniq | sortAlpha | join "," }}
{{- end }}

{{- define "talk.env" -}}
- {name: INFINITETALK_SECRETS_DIR, value: /secrets}
- {name: INFINITETALK_S3_ENDPOINT, value: {{ .Values.s3.endpoint | quote }}}
- {name: INFINITETALK_S3_BUCKET, value: {{ .Values.s3.bucket | quote }}}
- {name: INFINITETALK_S3_REGION, value: {{ .Values.s3.region | default "us-east-1" | quote }}}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end }}

{{- define "talk.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "talk.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "talk.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ .Values.existingSecret }}
    items:
      - {key: INFINITETALK_REDIS_URL, path: INFINITETALK_REDIS_URL}
      - {key: INFINITETALK_S3_ACCESS_KEY, path: INFINITETALK_S3_ACCESS_KEY}
      - {key: INFINITETALK_S3_SECRET_KEY, path: INFINITETALK_S3_SECRET_KEY}
{{- end }}
