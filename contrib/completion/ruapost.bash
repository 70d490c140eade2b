# Completion for ruapost-milter, ruapost-tlspolicy and ruapost-reporter in bash(1).
# It belongs at /usr/share/bash-completion/completions/ under the names of the three
# programs, or is read by ~/.bashrc; it needs nothing else. In zsh:
#
#     autoload -Uz compinit bashcompinit; compinit; bashcompinit; . ruapost.bash
#
# Domains and report IDs are not completed: that would open the store at each Tab.

# _ruapost_command sets command to the command in the line before the cursor, words to
# the words behind it, and what to the option whose value the cursor is at, if any.
_ruapost_command() {
	local i word
	command='' what='' words=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ $word == = ]]; then # readline splits a word there
			continue
		elif [[ $what ]]; then # a value
			what=''
		elif [[ $command ]]; then
			words+=("$word")
			case $word in
			-n | -for | -reason | -domain | -selector | -postfix | -replace | -hash) what=${word#-} ;;
			--n | --for | --reason | --domain | --selector | --postfix | --replace | --hash) what=${word#--} ;;
			esac
		elif [[ $word == -config || $word == --config ]]; then
			what=config
		elif [[ $word != -* ]]; then
			command=$word
		fi
	done
}

# _ruapost_offer offers those of its arguments that begin like the word at the cursor.
_ruapost_offer() {
	local IFS=$' \t\n'
	COMPREPLY=($(compgen -W "$*" -- "${COMP_WORDS[COMP_CWORD]}"))
}

# _ruapost_files offers files.
_ruapost_files() {
	local IFS=$'\n'
	COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
	compopt -o filenames 2>/dev/null # not where nobody completes, as in a test
}

_ruapost_general='-config -check -version -help'

_ruapost_milter() {
	local command what words
	_ruapost_command
	COMPREPLY=()
	case $what:$command in
	config:*) _ruapost_files ;;
	:) _ruapost_offer $_ruapost_general ;;
	esac
}

_ruapost_tlspolicy() {
	local command what words
	_ruapost_command
	COMPREPLY=()
	case $what:$command in
	config:*) _ruapost_files ;;
	:) _ruapost_offer $_ruapost_general query dump purge check help version ;;
	:help) ((${#words[@]})) || _ruapost_offer query dump purge check ;;
	:query | :dump) _ruapost_offer -json -help ;;
	:purge | :check) _ruapost_offer -help ;;
	esac
}

_ruapost_reporter() {
	local command what words
	local commands='send list show preview history resend forget suppress bounce check setup web dkim-keygen store'
	_ruapost_command
	COMPREPLY=()
	case $what:$command in
	config:*) _ruapost_files ;;
	:) _ruapost_offer $_ruapost_general $commands help version ;;
	:help) ((${#words[@]})) || _ruapost_offer $commands ;;
	:send) _ruapost_offer --now --no-spread --domain --dry-run -help ;;
	:list | :history) _ruapost_offer -json -n -help ;;
	:show) _ruapost_offer -mail -json -help ;;
	:check) _ruapost_offer -json -help ;;
	:preview | :resend | :forget | :bounce) _ruapost_offer -help ;;
	postfix:setup) _ruapost_files ;;
	replace:setup) _ruapost_offer opendmarc postfix-tlspol mta-sts-resolver tlsrpt-reporter ;;
	:setup) _ruapost_offer --apply --undo --replace -postfix -json -help ;;
	:web) _ruapost_offer -hash -help ;;
	:dkim-keygen)
		if [[ ${COMP_WORDS[COMP_CWORD]} == -* ]]; then
			_ruapost_offer -selector -domain -help
		else
			_ruapost_files
		fi
		;;
	:suppress)
		case ${words[0]-} in
		'') _ruapost_offer list add remove -help ;;
		list) _ruapost_offer -json -help ;;
		add) _ruapost_offer -for -reason -help ;;
		*) _ruapost_offer -help ;;
		esac
		;;
	:store) ((${#words[@]})) || _ruapost_offer stats check compact export import -help ;;
	esac
}

complete -F _ruapost_milter ruapost-milter
complete -F _ruapost_tlspolicy ruapost-tlspolicy
complete -F _ruapost_reporter ruapost-reporter
