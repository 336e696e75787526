// Renders what /now and /instrument say, once a second. Times are India's; ages are by the server's clock.
const $ = id => document.getElementById(id)
const time = new Intl.DateTimeFormat('en-GB', {timeZone: 'Asia/Kolkata', hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23'})
const minute = new Intl.DateTimeFormat('en-GB', {timeZone: 'Asia/Kolkata', hour: '2-digit', minute: '2-digit', hourCycle: 'h23'})
const day = new Intl.DateTimeFormat('en-GB', {timeZone: 'Asia/Kolkata', weekday: 'short', day: 'numeric', month: 'short'})
const number = (value, digits = 0) => value == null ? '-' : value.toLocaleString('en-GB', {minimumFractionDigits: digits, maximumFractionDigits: digits})
const decimals = value => value != null && Math.abs(value * 100 - Math.round(value * 100)) > 1e-6 ? 4 : 2
const price = value => number(value, decimals(value))
const signed = (value, digits = 2) => value == null ? '' : (value > 0 ? '+' : value < 0 ? '−' : '') + number(Math.abs(value), digits)
const way = value => value > 0 ? 'up' : value < 0 ? 'down' : ''
const arrow = value => value > 0 ? '▲ ' : value < 0 ? '▼ ' : ''
const short = value => value >= 1e7 ? number(value / 1e7, 2) + ' crore' : value >= 1e5 ? number(value / 1e5, 2) + ' lakh' : number(value)
// What a capture says is up to two seconds old when it is shown.
const ago = seconds => seconds < 3 ? 'now' : age(seconds) + ' ago'
const age = seconds => seconds < 100 ? number(Math.max(seconds, 0), 1) + ' s' : seconds < 6000 ? number(seconds / 60) + ' min' : number(seconds / 3600) + ' h'
const sum = values => values.reduce((a, b) => a + b, 0)

function element(name, text = '', className = '') {
  const made = document.createElement(name)
  made.textContent = text
  if (className) made.className = className
  return made
}

// Names stand between backticks, as Markdown has them.
function sentence(name, text) {
  const made = element(name)
  made.append(...text.split('`').map((part, n) => n % 2 ? element('code', part) : part))
  return made
}

function unit(id, value, name, bad = false) {
  $(id).replaceChildren(value + ' ', element('small', name))
  $(id).className = bad ? 'bad' : ''
}

function rows(id, cells) {
  $(id).tBodies[0].replaceChildren(...cells.map(row => {
    const made = element('tr')
    made.append(...row.map(cell => cell instanceof Node ? cell : element('td', cell)))
    return made
  }))
}

function draw(name, attributes, text) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  if (text != null) made.textContent = text
  return made
}

// What is happening now.

const rates = []
let group = null
let missed = []  // gaps that are over: from and to, in Unix seconds
let seen = null  // when the numbers that are shown were true, by this browser's clock, and what time it was

function renderNow(now) {
  const at = Date.parse(now.at)
  seen = {at, here: Date.now()}
  $('away').hidden = true
  $('clock').textContent = `${day.format(at)} ${time.format(at)} IST`
  $('verdict').textContent = (now.good ? '✓ ' : '✗ ') + now.headline
  $('verdict').className = now.good ? 'good' : 'bad'
  document.title = `${now.good ? '✓' : '✗'} ${now.headline} · dhan-pipeline`
  $('problems').hidden = now.good
  $('problems').replaceChildren(...now.problems.map(problem => sentence('li', problem)))

  const captures = now.captures, worst = key => captures.map(c => c[key]).filter(value => value != null).reduce((a, b) => Math.max(a, b), -1)
  const rate = sum(captures.map(c => c.ticks_per_second))
  unit('rate', number(rate), 'a second')
  rates.push(rate)
  rates.splice(0, rates.length - 180)
  spark(rates)
  const p99 = worst('latency_p99_ms'), p50 = worst('latency_p50_ms')
  unit('latency', p99 < 0 ? '-' : number(p99), 'ms p99')
  $('median').textContent = p50 < 0 ? 'nothing stored in the last 10 s' : `p50 ${number(p50)} ms, from receipt to commit`
  unit('backlog', number(Math.max(worst('backlog_s'), 0), 1), 's')
  const depth = worst('queue_depth'), rejected = sum(captures.map(c => c.rejected))
  $('stored').textContent = `${number(sum(captures.map(c => c.ticks)))} ticks stored, ${number(rejected)} rejected`
    + (depth < 0 ? '' : `, ${number(depth)} messages in RabbitMQ`)
  const up = sum(captures.map(c => c.connections_up)), all = sum(captures.map(c => c.connections))
  unit('connections', `${up} of ${all}`, 'up', up < all || !captures.length)
  $('captures').textContent = captures.map(c => c.state === 'live'
    ? `${c.source}: ${number(c.memory_mb)} MB, ${number(c.processor_percent)} % of a core`
    : `${c.source}: ${c.state} since ${time.format(Date.parse(c.said_at))}`).join('; ')
  unit('gaps', number(now.gaps), now.gaps === 1 ? 'gap' : 'gaps')
  $('gapnote').textContent = (now.gaps ? `${number(now.gap_s, 1)} s of the session` : 'nothing missed in session')
    + (now.silences ? `; ${number(now.silences)} instruments fell silent` : '')

  const several = new Set(now.segments.map(s => s.source)).size > 1
  rows('segments', now.segments.map(s => [
    (several ? s.source + ' ' : '') + s.segment,
    s.session,
    number(s.ticks_per_second, s.ticks_per_second < 10 ? 1 : 0),
    element('td', s.last_at ? ago((at - Date.parse(s.last_at)) / 1000) + (s.late ? ', late' : '') : 'none yet', s.late ? 'bad' : ''),
    `${number(s.heard)} of ${number(s.instruments)}`,
  ]))

  missed = now.latest_gaps.filter(g => g.ended_at).map(g => [g.started_at, g.ended_at].map(at => Date.parse(at) / 1000))
  $('gapsof').hidden = !now.latest_gaps.length
  rows('latest', now.latest_gaps.map(g => [
    time.format(Date.parse(g.started_at)),
    g.ended_at ? time.format(Date.parse(g.ended_at)) : 'lasts',
    number(g.seconds, 1),
    `${g.source} ${g.connection}`,
    g.cause + (g.detail ? ': ' + g.detail : ''),
  ]))
  renderMovers(now.movers)
}

function renderMovers(movers) {
  const names = ['shares', 'futures', 'indices'].filter(name => movers[name] && (movers[name].up.length || movers[name].down.length))
  $('moversof').hidden = !names.length
  if (!names.length) return
  if (!names.includes(group)) group = names[0]
  $('groups').replaceChildren(...names.map(name => {
    const button = element('button', name)
    button.setAttribute('aria-pressed', name === group)
    button.onclick = () => { group = name; renderMovers(movers) }
    return button
  }))
  $('movers').replaceChildren(...['up', 'down'].map(direction => {
    const list = element('div')
    list.append(...movers[group][direction].map(mover => {
      const button = element('button')
      const name = element('span', mover.symbol, 'name')
      if (!mover.segment.startsWith('NSE') && group === 'shares') name.append(element('small', ' ' + mover.segment.slice(0, 3)))
      button.append(name, price(mover.last_price),
        element('span', `${arrow(mover.change_percent)}${signed(mover.change_percent)} %`, 'move ' + direction))
      button.title = `${mover.symbol} ${mover.segment}`
      button.onclick = () => show(mover.instrument_token)
      return button
    }))
    return list
  }))
  // The first look is at something that moves.
  if (!chosen) show((movers[group].up[0] || movers[group].down[0]).instrument_token, false)
}

function spark(values) {
  const top = Math.max(...values, 1)
  const points = values.map((value, at) => `${values.length > 1 ? at * 100 / (values.length - 1) : 0},${21 - 19 * value / top}`)
  const made = draw('polyline', {points: points.join(' '), class: 'price', 'vector-effect': 'non-scaling-stroke'})
  $('rates').setAttribute('viewBox', '0 0 100 22')
  $('rates').setAttribute('preserveAspectRatio', 'none')
  $('rates').replaceChildren(made)
}

// One instrument.

let wanted = decodeURIComponent(location.hash.slice(1))
let chosen = Boolean(wanted)
let shown = null

function show(symbol, remember = true) {
  wanted = symbol
  chosen = true
  if (remember) history.replaceState(null, '', '#' + encodeURIComponent(symbol))
  look()
}

function renderInstrument(found) {
  const {instrument, tick, points} = found
  shown = found
  wanted = instrument.instrument_token
  $('unknown').hidden = true
  $('shown').hidden = false
  $('name').textContent = instrument.symbol
  $('segment').textContent = instrument.segment + (instrument.name && instrument.name !== instrument.symbol ? ' · ' + instrument.name : '')
  if (found.others.length) {
    $('others').replaceChildren('Or: ', ...found.others.map(other => {
      const button = element('button', `${other.symbol} ${other.segment}`)
      button.onclick = () => { $('others').replaceChildren(); show(other.instrument_token) }
      return button
    }))
  }
  $('price').textContent = tick && tick.last_price != null ? (instrument.segment === 'IDX_I' ? '' : '₹') + price(tick.last_price) : '-'
  $('change').textContent = tick && tick.change != null ? `${arrow(tick.change)}${signed(tick.change, decimals(tick.change))} (${signed(tick.change_percent)} %)` : ''
  $('change').className = tick ? way(tick.change) : ''
  $('since').textContent = tick ? `${day.format(Date.parse(tick.time))} ${time.format(Date.parse(tick.time))} IST, ${tick.mode}`
    : 'No tick of it in the last four days. Is it subscribed?'
  renderDepth(tick)
  const facts = tick ? [
    ['Open', price(tick.day_open)], ['High', price(tick.day_high)], ['Low', price(tick.day_low)], ['Previous close', price(tick.day_close)],
    ['Average', price(tick.average_traded_price)], ['Volume', tick.volume_traded == null ? '-' : short(tick.volume_traded)],
    ['Open interest', tick.oi ? short(tick.oi) : '-'],
  ].filter(([, value]) => value !== '-') : []
  $('facts').replaceChildren(...facts.map(([name, value]) => {
    const made = element('div')
    made.append(element('dt', name), element('dd', value))
    return made
  }))
  chart(points, tick)
}

function renderDepth(tick) {
  const has = tick && tick.bid_prices
  $('depth').hidden = !has
  if (!has) return
  const most = Math.max(...tick.bid_quantities, ...tick.ask_quantities, 1)
  rows('depth', tick.bid_prices.map((bid, at) => {
    const cells = [tick.bid_orders[at], tick.bid_quantities[at], price(bid), price(tick.ask_prices[at]), tick.ask_quantities[at], tick.ask_orders[at]]
      .map((value, column) => element('td', typeof value === 'number' ? number(value) : value, ['', '', 'up', 'down'][column]))
    cells[1].style.setProperty('--share', 100 * tick.bid_quantities[at] / most + '%')
    cells[4].style.setProperty('--share', 100 * tick.ask_quantities[at] / most + '%')
    return cells
  }))
}

const MINUTES = 15, BIN = 15

function chart(points, tick) {
  const svg = $('chart'), width = svg.clientWidth || 600, height = 230
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
  svg.replaceChildren()
  svg.onpointermove = svg.onpointerleave = null
  $('hover').textContent = points.length ? '' : 'No ticks to draw.'
  if (!points.length) return
  const end = points.at(-1)[0], start = end - MINUTES * 60
  const prices = points.map(point => point[1])
  let low = Math.min(...prices), high = Math.max(...prices)
  const least = high * 2e-4 || 0.01
  if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2]
  const left = 4, right = width - 62, top = 10, bottom = height - 70, base = height - 20
  const x = second => left + (second - start) / (end - start) * (right - left)
  const y = value => bottom - (value - low) / (high - low) * (bottom - top)

  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough)
  for (let level = Math.ceil(low / step) * step; level <= high; level += step) {
    svg.append(draw('line', {x1: left, x2: right, y1: y(level), y2: y(level), class: 'grid'}),
      draw('text', {x: right + 6, y: y(level) + 4}, number(level, step < 0.01 ? 4 : 2)))
  }
  for (let second = Math.ceil(start / 300) * 300; second <= end; second += 300) {
    const anchor = x(second) < 24 ? 'start' : x(second) > right - 16 ? 'end' : 'middle'
    svg.append(draw('line', {x1: x(second), x2: x(second), y1: top, y2: base, class: 'grid'}),
      draw('text', {x: x(second), y: height - 5, 'text-anchor': anchor}, minute.format(second * 1000)))
  }
  if (tick.day_close > low && tick.day_close < high) {
    svg.append(draw('line', {x1: left, x2: right, y1: y(tick.day_close), y2: y(tick.day_close), class: 'close'}))
  }

  // Where packets were missed the line is broken, and nobody knows in which bar the volume belongs.
  const stretches = [[points[0]]]
  for (const point of points.slice(1)) {
    const last = stretches.at(-1).at(-1)
    if (missed.some(([from, to]) => last[0] <= from && to < point[0] + 1)) {
      svg.append(draw('rect', {x: x(last[0]), width: x(point[0]) - x(last[0]), y: top, height: bottom - top, class: 'missed'}))
      stretches.push([])
    }
    stretches.at(-1).push(point)
  }
  // Traded volume is the difference of the day's; of the first bin it is not known.
  const bins = new Map()
  for (const stretch of stretches) {
    let before = stretch[0][2]
    for (const [second, , volume] of stretch) {
      if (volume == null) continue
      const bin = Math.floor(second / BIN) * BIN
      bins.set(bin, (bins.get(bin) || 0) + Math.max(volume - (before ?? volume), 0))
      before = volume
    }
  }
  const most = Math.max(...bins.values(), 1)
  for (const [bin, volume] of bins) {
    const from = Math.max(x(bin), left), to = Math.min(x(bin + BIN), right), tall = (base - bottom - 14) * volume / most
    if (to - from > 1) svg.append(draw('rect', {x: from, width: to - from - 1, y: base - tall, height: tall, class: 'volume'}))
  }

  for (const stretch of stretches) {
    const line = stretch.map(([second, value]) => `${x(second).toFixed(1)},${y(value).toFixed(1)}`).join(' ')
    const [from, to] = [stretch[0], stretch.at(-1)].map(([second]) => x(second).toFixed(1))
    svg.append(draw('polygon', {points: `${from},${bottom} ${line} ${to},${bottom}`, class: 'area'}),
      draw('polyline', {points: line, class: 'price'}))
  }
  const cross = draw('line', {y1: top, y2: base, class: 'cross', visibility: 'hidden'})
  svg.append(cross)
  $('hover').textContent = `${MINUTES} minutes, a price a second; bars: volume of ${BIN} s, at most ${short(most)}`
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect()
    const second = start + (event.clientX - box.left - left) / (right - left) * (end - start)
    const near = points.reduce((a, b) => Math.abs(b[0] - second) < Math.abs(a[0] - second) ? b : a)
    for (const name of ['x1', 'x2']) cross.setAttribute(name, x(near[0]))
    cross.setAttribute('visibility', 'visible')
    const bin = bins.get(Math.floor(near[0] / BIN) * BIN)
    $('hover').textContent = `${time.format(near[0] * 1000)} IST  ${price(near[1])}` + (bin ? `, volume of ${BIN} s: ${short(bin)}` : '')
  }
  svg.onpointerleave = () => {
    cross.setAttribute('visibility', 'hidden')
    $('hover').textContent = ''
  }
}

// Once a second, while somebody looks.

async function ask(path) {
  const reply = await fetch(path, {signal: AbortSignal.timeout(12000)})
  return [reply.status, await reply.json()]
}

function sayAway(problem) {
  const since = seen ? ` What you see is of ${time.format(seen.at)} IST, ${age((Date.now() - seen.here) / 1000)} old.` : ''
  $('away').textContent = `✗ ${problem}${since} Trying again each second.`
  $('away').hidden = false
}

let looking = 0
let again = 0  // not before then: a busy instrument's minutes take a tenth of the database's time at most

async function look() {
  const mine = ++looking, symbol = wanted, began = Date.now()
  if (!symbol) return
  try {
    const [status, found] = await ask('/instrument?symbol=' + encodeURIComponent(symbol))
    again = Date.now() + 9 * (Date.now() - began)
    if (mine !== looking) return
    if (status === 200) renderInstrument(found)
    if (status === 404) {
      $('unknown').textContent = found.problem
      $('unknown').hidden = false
      $('shown').hidden = true
      shown = null
      wanted = ''
    }
  } catch { /* /now says what is wrong */ }
}

let timer = 0

async function poll() {
  clearTimeout(timer)
  if (document.hidden) return
  const began = Date.now()
  try {
    const [status, now] = await ask('/now')
    if (status === 200) renderNow(now)
    else sayAway(now.problem || 'The page cannot be asked.')
  } catch {
    sayAway('The page’s server does not answer.')
  }
  if (shown && Date.now() >= again) await look()
  clearTimeout(timer)
  timer = setTimeout(poll, Math.max(1000 - (Date.now() - began), 100))
}

document.addEventListener('visibilitychange', poll)
addEventListener('resize', () => shown && chart(shown.points, shown.tick))
addEventListener('hashchange', () => show(decodeURIComponent(location.hash.slice(1)), false))
$('search').onsubmit = event => {
  event.preventDefault()
  $('others').replaceChildren()
  if ($('symbol').value.trim()) show($('symbol').value.trim())
}
if (wanted) {
  $('symbol').value = /^\d+$/.test(wanted) ? '' : wanted
  look()
}
poll()
