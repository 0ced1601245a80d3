// What check.py asks of every page in the browser; each function returns what is wrong, in words

const describe = e => `${e.tagName.toLowerCase()}.${(e.getAttribute('class') || '').split(' ')[0]} "${e.textContent.trim().slice(0, 60)}"`

// Formulas that MathJax left alone or could not read
async function formulas() {
  const all = [...document.querySelectorAll('.math')]
  if (!all.length) return []
  if (!window.MathJax?.startup?.promise) return ['MathJax did not start']
  await MathJax.startup.promise
  return all.filter(e => !e.querySelector('mjx-container') || e.querySelector('[data-mjx-error], mjx-merror')).map(describe)
}

// What sticks out of the theme's column; code, tables and displayed formulas may be wide, in a box that scrolls by itself
function tooWide() {
  const column = document.querySelector('.content')
  if (column.scrollWidth <= column.clientWidth) return []
  const beyond = e => e.getBoundingClientRect().right - column.clientWidth
  const scrolls = e => e !== column && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement))
  return [...column.querySelectorAll('*')]
    .filter(e => beyond(e) > 0 && !e.parentElement.closest('svg') && !scrolls(e.parentElement))
    .filter(e => e.matches('svg') || ![...e.children].some(child => beyond(child) > 0))
    .map(e => e.closest('.math') || e).map(e => `${Math.ceil(beyond(e))} px of ${describe(e)}`)
}

// Text whose WCAG contrast with what it stands on is below `least`, one for each colour
function pale(least) {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true})
  const rgba = color => {
    pen.clearRect(0, 0, 1, 1)
    pen.fillStyle = color
    pen.fillRect(0, 0, 1, 1)
    return [...pen.getImageData(0, 0, 1, 1).data]
  }
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255)
  const ground = e => {
    const color = e ? rgba(getComputedStyle(e).backgroundColor) : [255, 255, 255, 255]
    return color[3] > 127 ? color : ground(e.parentElement)
  }
  const found = new Map()
  for (const e of document.querySelectorAll('article *')) {
    const says = [...e.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim())
    if (!says || e.closest('svg, mjx-container, .headerlink') || !e.checkVisibility({checkVisibilityCSS: true})) continue
    const color = getComputedStyle(e).color
    const [dark, light] = [luminance(rgba(color)), luminance(ground(e))].sort((a, b) => a - b)
    const ratio = (light + 0.05) / (dark + 0.05)
    if (ratio < least) found.set(color, `${ratio.toFixed(1)}:1 for ${describe(e)}`)
  }
  return [...found.values()]
}
