# bash completion for zmrun

_zmrun()
{
    # shellcheck disable=SC2034 # _init_completion sets it
    local split
    local cur prev words cword i
    _init_completion -s -n : || return

    # Behind the options stands another command.
    for ((i = 1; i < cword; i++)); do
        case ${words[i]} in
            --)
                _command_offset $((i + 1))
                return
                ;;
            -[lcbnpstjomiP] | --limit | --cache | --backend | --fail-after | --fail-rate | --seed | --timeout | --json | \
                --page | --metrics | --interval | --profile | --profile-at | --profile-interval)
                ((i++))
                [[ ${words[i]-} == = ]] && ((i++))
                ;;
            -* | =) ;;
            *)
                [[ ${words[i - 1]} == = ]] && continue
                _command_offset "$i"
                return
                ;;
        esac
    done

    case $prev in
        -r | --report | -j | --json | -o | --page | -m | --metrics | -P | --profile | -L | --leaks)
            [[ $cur == -* ]] || _filedir
            return
            ;;
        -l | --limit)
            mapfile -t COMPREPLY < <(compgen -W '64M 256M 512M 1G 50% 80%' -- "$cur")
            return
            ;;
        -c | --cache)
            mapfile -t COMPREPLY < <(compgen -W '0 256K 1M 4M' -- "$cur")
            return
            ;;
        -b | --backend)
            mapfile -t COMPREPLY < <(compgen -W 'libc jemalloc mimalloc' -- "$cur")
            return
            ;;
        --profile-at)
            mapfile -t COMPREPLY < <(compgen -W 'peak end' -- "$cur")
            return
            ;;
        --profile-interval)
            mapfile -t COMPREPLY < <(compgen -W '1 4K 64K 512K' -- "$cur")
            return
            ;;
        -n | --fail-after | -p | --fail-rate | -s | --seed | -t | --timeout | -i | --interval | --sweep)
            return
            ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '--limit= --cache= --backend= --exact --fail-after= --fail-rate= --seed=
            --sweep --timeout= --profile= --profile-at= --profile-interval= --leaks --report --json= --page= --metrics=
            --interval= --follow --quiet --help --version' -- "$cur")
        [[ ${COMPREPLY-} == *= ]] && compopt -o nospace
        return
    fi
    _command_offset "$cword"
} &&
    complete -F _zmrun zmrun
